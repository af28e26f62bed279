"""The readings and samplers of the literature, token for token beside the descriptions of their sources."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prunegpt.errors import DataError
from prunegpt.lm.calibration import calibration_windows
from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.protocols import with_bos
from prunegpt.registry import CALIBRATION_MODES, PROTOCOLS

BOS = 2
LENGTH = 12


@pytest.fixture(scope="module")
def llama() -> PreTrainedTokenizerFast:
    """A token per character, and a bos before every text, as Llama's tokeniser puts one."""
    tokenizer = Tokenizer(WordLevel({chr(i): i for i in range(128)}, unk_token=chr(1)))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = TemplateProcessing(single=f"{chr(BOS)} $A", special_tokens=[(chr(BOS), BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=chr(1), bos_token=chr(BOS))


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """More of them than the first 1,100, of 0 to 40 characters: some shorter than a window, some exactly as long."""
    draw = random.Random(1)
    return ["".join(draw.choices("abcdefgh \n", k=draw.randrange(41))) for _ in range(1300)]


def side_by_side(ids: list[int], length: int) -> list[list[int]]:
    return [ids[place : place + length] for place in range(0, len(ids) - length + 1, length)]


# What the code of the sources reads, written from its description: protocol -> documents and tokens to windows.
READINGS: dict[str, Callable[[list[str], Any, int], list[list[int]]]] = {
    "stream": lambda texts, ids, length: side_by_side(ids("\n\n".join(texts)), length),
    "ptb-sparsegpt": lambda texts, ids, length: side_by_side(ids(" ".join(texts)), length),
    "c4-sparsegpt": lambda texts, ids, length: side_by_side(ids(" ".join(texts[:1100]))[: 256 * length], length),
    "llm-pruner": lambda texts, ids, length: side_by_side(ids("\n\n".join(texts)), length),
}


def from_one_document(texts: list[str], ids: Any, count: int, length: int, seed: int) -> list[list[int]]:
    random.seed(seed)
    found: list[list[int]] = []
    while len(found) < count:
        text = ids(texts[random.randint(0, len(texts) - 1)])
        if len(text) > length:
            begin = random.randint(0, len(text) - length - 1)
            found.append(text[begin : begin + length])
    return found


def from_all_joined(texts: list[str], ids: Any, count: int, length: int, seed: int) -> list[list[int]]:
    random.seed(seed)
    text = ids(" ".join(texts))
    begins = [random.randint(0, len(text) - length - 1) for _ in range(count)]
    return [text[begin : begin + length] for begin in begins]


def from_distinct_documents(texts: list[str], ids: Any, count: int, length: int, seed: int) -> list[list[int]]:
    random.seed(seed)
    used: list[int] = []
    found: list[list[int]] = []
    while len(found) < count:
        place = random.randint(0, len(texts) - 1)
        text = ids(texts[place])
        if len(text) >= length and place not in used:
            used.append(place)
            begin = random.randint(0, len(text) - length)
            found.append(text[begin : begin + length])
    return found


SAMPLERS = {"document": from_one_document, "joined": from_all_joined, "distinct": from_distinct_documents}


def test_every_part_of_the_literature_is_compared() -> None:
    assert {*READINGS} == {*PROTOCOLS.builtin_names()} - {"blocks", "sliding"}
    assert {*SAMPLERS} == {*CALIBRATION_MODES.builtin_names()} - {"random", "first", "shuffled"}


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("length", [LENGTH, 128])
def test_windows_are_those_of_the_source(name: str, length: int, documents: list[str], llama: Any) -> None:
    state = random.getstate()
    windows = PROTOCOLS.load(name)(documents, llama, length)
    expected = READINGS[name](documents, lambda text: llama(text)["input_ids"], length)
    assert len(expected) > 100
    assert [
        windows.tokens[start : start + size].tolist()
        for start, size in zip(windows.starts, windows.lengths, strict=True)
    ] == expected
    assert expected[0][0] == BOS
    assert set(windows.first_scored) == {1}
    assert random.getstate() == state


def test_of_c4_there_are_256_windows_of_the_first_1100_documents(documents: list[str], llama: Any) -> None:
    protocol = PROTOCOLS.load("c4-sparsegpt")
    windows = protocol(documents, llama, LENGTH)
    assert len(windows) == 256
    assert len(protocol(documents, llama, 500)) == len(" ".join(documents[:1100]) + "B") // 500 < 256
    changed = [*documents[:1100], "another"]
    assert np.array_equal(protocol(changed, llama, 500).tokens, protocol(documents, llama, 500).tokens)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("seed", range(5))
def test_calibration_windows_are_those_of_the_source(name: str, seed: int, documents: list[str], llama: Any) -> None:
    expected = SAMPLERS[name](documents, lambda text: llama(text)["input_ids"], 40, LENGTH, seed)
    state = random.getstate()
    found = calibration_windows(documents, llama, windows=40, length=LENGTH, seed=seed, mode=name)
    assert found.dtype == np.int64
    assert found.tolist() == expected
    assert random.getstate() == state


def test_a_document_must_be_longer_than_the_window(llama: Any) -> None:
    """Of two documents one has as many tokens as the window, with its bos."""
    short, longer = "a" * (LENGTH - 1), "b" * LENGTH
    found = calibration_windows([short, longer], llama, windows=9, length=LENGTH, mode="document")
    assert found.tolist() == [[BOS, *[ord("b")] * (LENGTH - 1)]] * 9
    with pytest.raises(DataError, match=r"at least 13 tokens; of 2 documents none has that many.*mode: random"):
        calibration_windows([short, short], llama, windows=1, length=LENGTH, mode="document")
    assert len(calibration_windows([short, longer], llama, windows=2, length=LENGTH, mode="distinct")) == 2
    with pytest.raises(DataError, match=r"at least 12 tokens; of 2 documents too few have that many"):
        calibration_windows([short, longer], llama, windows=3, length=LENGTH, mode="distinct")


# -- a bos before each window ----------------------------------------------------------------------------------------


def nats_behind_bos(model: Any, ids: Sequence[int], first: int = 0) -> list[float]:
    """Of each token from `first` on, with a bos before them all."""
    with torch.no_grad():
        logits = model(torch.tensor([[BOS, *ids]])).logits[0].double().log_softmax(-1)
    return [-float(logits[place, token]) for place, token in enumerate(ids) if place >= first]


@pytest.mark.parametrize("name", PROTOCOLS.builtin_names())
def test_every_protocol_puts_a_bos_before_its_windows(
    name: str, documents: list[str], llama: Any, tiny_llama: Any
) -> None:
    protocol, texts = PROTOCOLS.load(name), documents[:40]
    windows = protocol(texts, llama, LENGTH, bos=True)
    assert BOS not in windows.tokens
    assert windows.protocol.endswith("/bos")
    assert windows.lengths.max() == LENGTH - 1
    assert windows.scored_tokens.sum() == windows.scored_bytes.sum()  # a token is a byte
    found, losses = evaluate(tiny_llama, windows, batch_size=7)
    expected = [
        nats_behind_bos(tiny_llama, windows.tokens[start : start + length].tolist(), first)
        for start, length, first in zip(windows.starts, windows.lengths, windows.first_scored, strict=True)
    ]
    assert losses[:, 0] == pytest.approx([sum(one) for one in expected], rel=1e-5)
    assert losses[:, 1].tolist() == [len(one) for one in expected]
    assert found.text != evaluate(tiny_llama, protocol(texts, llama, LENGTH))[0].text


@pytest.mark.parametrize("stride", [1, 5, LENGTH - 2, LENGTH - 1])
def test_behind_a_bos_every_token_counts_once(stride: int, documents: list[str], llama: Any) -> None:
    text = "".join(documents[:9])
    windows = PROTOCOLS.load("sliding")([text], llama, LENGTH, stride, bos=True)
    counted = [
        place
        for start, length, first in zip(windows.starts, windows.lengths, windows.first_scored, strict=True)
        for place in range(start + first, start + length)
    ]
    assert counted == list(range(len(text)))


@pytest.mark.parametrize("mode", CALIBRATION_MODES.builtin_names())
def test_calibration_windows_begin_with_a_bos(mode: str, documents: list[str], llama: Any) -> None:
    rows = with_bos(documents, llama)
    found = calibration_windows(rows, llama, windows=5, length=LENGTH, mode=mode)
    assert found.shape == (5, LENGTH)
    assert (found[:, 0] == BOS).all()
    assert not (found[:, 1:] == BOS).any()


def test_a_tokeniser_without_bos_is_refused(characters: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"bos: true needs a tokeniser with a bos token.*Remove it"):
        PROTOCOLS.load("stream")(["some text"] * 9, characters, LENGTH, bos=True)
