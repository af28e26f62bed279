import math
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from prunegpt.errors import DataError
from prunegpt.lm.protocols import blocks, evaluation_windows, sliding, stream
from prunegpt.lm.windows import Windows, encode_rows

TEXT = "In the beginning was the word,\n  and it was 42 naïve 漢字 signs — 🙂🙂 long.\n"


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that one character may be several tokens and one token several characters."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT, "the word was in the beginning"], vocab_size=300, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)


def example_blocks(rows: list[str], tokenizer: Any, block_size: int) -> np.ndarray:
    """The two `datasets.map` steps of transformers' causal-language-modelling example, written again."""

    def tokenise(examples: dict[str, list[str]]) -> Any:
        return {"input_ids": tokenizer(examples["text"])["input_ids"]}

    def group(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = list(chain(*examples["input_ids"]))
        end = len(joined) // block_size * block_size
        return {"input_ids": [joined[i : i + block_size] for i in range(0, end, block_size)]}

    tokenised = Dataset.from_dict({"text": rows}).map(tokenise, batched=True, remove_columns=["text"])
    return np.asarray(tokenised.map(group, batched=True)["input_ids"])


def window_tokens(windows: Windows) -> list[np.ndarray]:
    pairs = zip(windows.starts, windows.lengths, strict=True)
    return [windows.tokens[start : start + length] for start, length in pairs]


def test_blocks_are_those_of_the_example(characters: PreTrainedTokenizerFast, rows: list[str]) -> None:
    many = rows * 95  # 2,280 rows, three batches, each with a rest
    windows = blocks(many, characters, 32)
    expected = example_blocks(many, characters, 32)
    assert np.array_equal(np.stack(window_tokens(windows)), expected)
    assert expected.ravel().tolist() != [ord(sign) for row in many for sign in row][: expected.size]
    assert set(windows.first_scored) == {1}


def test_blocks_keep_the_tokenisers_special_tokens_of_each_row(rows: list[str]) -> None:
    tokenizer = ByT5Tokenizer()
    expected = example_blocks(rows, tokenizer, 16)
    assert (expected == tokenizer.eos_token_id).sum() > 10
    assert np.array_equal(np.stack(window_tokens(blocks(rows, tokenizer, 16))), expected)


def test_stream_joins_rows_by_a_blank_line_and_drops_the_rest(
    characters: PreTrainedTokenizerFast, rows: list[str]
) -> None:
    text = "\n\n".join(rows)
    windows = stream(rows, characters, 48)
    assert len(windows) == len(text) // 48
    assert "".join(map(chr, windows.tokens)) == text[: len(windows) * 48]
    assert np.array_equal(windows.starts, np.arange(len(windows)) * 48)


def test_stream_takes_one_text_as_it_is_without_special_tokens() -> None:
    tokenizer = ByT5Tokenizer()
    whole = stream([TEXT], tokenizer, 8)
    assert tokenizer.eos_token_id not in whole.tokens
    assert tokenizer.decode(whole.tokens) == TEXT.encode()[: len(whole) * 8].decode(errors="ignore")
    assert whole.protocol.startswith("stream/8/special-none/")
    joined = stream([TEXT, "end"], tokenizer, 8)
    assert joined.protocol.startswith("stream/8/special-once/")


@pytest.mark.parametrize("count", [2, 15, 16, 17, 24, 25, 40, 100])
@pytest.mark.parametrize("stride", [1, 5, 8, 15, 16])
def test_sliding_follows_the_guide(characters: PreTrainedTokenizerFast, count: int, stride: int) -> None:
    text = ("abcdefghijklmnopqrstuvwxyz" * 4)[:count]
    windows = sliding([text], characters, 16, stride)
    expected, previous_end = [], 0
    for begin in range(0, count, stride):
        end = min(begin + 16, count)
        targets = [place for place in range(begin + 1, end) if place >= previous_end]
        if targets:
            expected.append((begin, end, targets))
        previous_end = end
        if end == count:
            break
    found = [
        (start, start + length, list(range(start + first, start + length)))
        for start, length, first in zip(windows.starts, windows.lengths, windows.first_scored, strict=True)
    ]
    assert found == expected
    scored = [place for *_, targets in found for place in targets]
    assert len(scored) == len(set(scored))
    if stride < 16:
        assert scored == list(range(1, count))


def test_sliding_moves_half_a_window_unless_told(characters: PreTrainedTokenizerFast) -> None:
    windows = sliding(["x" * 40], characters, 16)
    assert list(windows.starts) == [0, 8, 16, 24]
    assert "sliding/16/stride-8/" in windows.protocol


def test_protocol_ids_tell_all_that_matters(characters: PreTrainedTokenizerFast, bpe: Any, rows: list[str]) -> None:
    ids = {
        windows.protocol
        for windows in (
            blocks(rows, characters, 16),
            blocks(rows, characters, 32),
            blocks(rows, bpe, 16),
            blocks(rows, characters, 16).first(2),
            stream(rows, characters, 16),
            sliding(rows, characters, 16, 8),
            sliding(rows, characters, 16, 4),
        )
    }
    assert len(ids) == 7
    assert all(identity.count("/") >= 4 and "token-mean" in identity for identity in ids)
    assert blocks(rows, characters, 16).protocol in ids


def test_first_windows(characters: PreTrainedTokenizerFast, rows: list[str]) -> None:
    windows = blocks(rows, characters, 16)
    first = windows.first(3)
    assert len(first) == 3
    assert np.array_equal(first.scored_bytes, windows.scored_bytes[:3])
    assert windows.first(None) is windows
    assert windows.first(10**6) is windows


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.text(max_size=20), min_size=1, max_size=6))
def test_every_byte_and_word_belongs_to_one_token(bpe: PreTrainedTokenizerFast, rows: list[str]) -> None:
    encoded = encode_rows(rows, bpe)
    assert encoded.text is not None
    assert (encoded.text >= 0).all()
    assert encoded.text[:, 0].sum() == sum(len(row.encode()) for row in rows)
    assert encoded.text[:, 1].sum() == sum(len(row.split()) for row in rows)


def test_bytes_are_those_of_the_scored_tokens(bpe: PreTrainedTokenizerFast) -> None:
    """Each token of byte-level BPE stands for a known number of bytes; a shared character goes to its first token."""
    windows = sliding([TEXT], bpe, 12, 6)
    decoded = bpe.backend_tokenizer.decoder
    assert decoded is not None
    assert windows.scored_bytes.sum() == len(TEXT.encode()) - len(bpe.decode(windows.tokens[:1]).encode())
    ascii_only = TEXT.encode("ascii", "ignore").decode()
    plain = stream([ascii_only], bpe, 10)
    for start, count in zip(plain.starts, plain.scored_bytes, strict=True):
        assert count == len(bpe.decode(plain.tokens[start + 1 : start + 10]).encode())


def test_bytes_and_words_without_offsets_are_decoded() -> None:
    windows = stream([TEXT], ByT5Tokenizer(), 8)
    first = TEXT.encode()[1:8].decode()
    assert windows.scored_bytes[0] == 7
    assert windows.scored_words[0] == len(first.split())


def test_white_space_that_a_tokeniser_drops_counts_as_text(rows: list[str]) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = sorted({word for row in rows for word in row.split()})
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    windows = sliding(["  the weights \n go to   zero  "], PreTrainedTokenizerFast(tokenizer_object=tokenizer), 8)
    assert windows.scored_tokens.sum() == 4
    assert windows.scored_words.sum() == 4
    assert windows.scored_bytes.sum() == len(" weights \n go to   zero  ")


def test_too_short_text_says_how_short(characters: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"a block of 64 tokens .* takes 64 tokens; it has 10"):
        blocks(["a" * 10], characters, 64)
    with pytest.raises(DataError, match=r"a window of 64 tokens, which takes 64 tokens; it has 63"):
        stream(["a" * 63], characters, 64)
    with pytest.raises(DataError, match=r"which takes 2 tokens; it has 1"):
        sliding(["a"], characters, 64)
    with pytest.raises(DataError, match=r"the dataset has no row"):
        blocks([], characters, 64)


def test_windows_and_strides_out_of_range(characters: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"at least 2 tokens; block_size is 1"):
        blocks(["abc"], characters, 1)
    for stride in (0, 9):
        with pytest.raises(DataError, match=rf"stride must be from 1 to the window's 8 tokens, got {stride}"):
            sliding(["abcdefghijkl"], characters, 8, stride)


def test_a_text_file_is_lines_for_blocks_and_one_string_for_the_others(
    characters: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = "one\n\n two\nthree four\n"
    (tmp_path / "test.txt").write_text(text)
    source = {"path": tmp_path, "split": "test", "block_size": 4}
    by_row = evaluation_windows("blocks", characters, **source)
    assert "".join(map(chr, by_row.tokens)) == text[: len(by_row) * 4]
    assert by_row.protocol != evaluation_windows("stream", characters, **source).protocol
    whole = evaluation_windows("stream", characters, **source)
    assert "".join(map(chr, whole.tokens)) == text[: len(whole) * 4]
    assert evaluation_windows("sliding", characters, **source, stride=2, max_windows=3).protocol.endswith("/first-3")
    assert math.isclose(len(whole), len(text) // 4)
