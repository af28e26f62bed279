import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerFast

from prunegpt.errors import DataError, UnknownPartError
from prunegpt.lm.calibration import calibration_windows
from prunegpt.lm.data import pack_training_blocks, read_documents, read_rows, read_text
from prunegpt.lm.protocols import blocks, stream

LINES = ["the first line", "", "  the third, indented ", "naïve 漢字 🙂", "", "the last"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One text, in each kind of file."""
    (tmp_path / "train.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    with (tmp_path / "validation.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": line, "id": i}) + "\n" for i, line in enumerate(LINES))
    Dataset.from_dict({"text": LINES[:3]}).to_parquet(tmp_path / "test-00000-of-00002.parquet")
    Dataset.from_dict({"text": LINES[3:]}).to_parquet(tmp_path / "test-00001-of-00002.parquet")
    return tmp_path


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_kind_of_file_gives_the_same_rows(folder: Path, split: str) -> None:
    assert [row.removesuffix("\n") for row in read_rows(folder, split=split)] == LINES


@pytest.mark.parametrize("text", ["a\nb\n", "a\nb", "\n\na\n\n", "a\r\nb\r\n", "a\x0bb\x0cc\u2028d\n", "x"])
def test_rows_of_a_text_file_are_those_of_the_datasets_loader(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.txt").write_bytes(text.encode())
    file = str(tmp_path / "train.txt")
    expected = load_dataset("text", data_files=file, keep_linebreaks=True, split="train")["text"]
    assert read_rows(tmp_path / "train.txt", split="train") == list(expected)


def test_a_text_file_is_one_document_and_a_dataset_has_its_rows(folder: Path) -> None:
    assert read_documents(folder, split="train") == ["\n".join(LINES) + "\n"]
    assert list(read_documents(folder, split="validation")) == LINES
    assert read_text(folder / "train.txt") == "\n".join(LINES) + "\n"


def test_rows_are_sliced_like_a_list(folder: Path) -> None:
    rows = read_rows(folder, split="validation")
    assert len(rows) == len(LINES)
    assert list(rows[2:4]) == LINES[2:4]


def test_files_by_split(folder: Path) -> None:
    files = {"train": [folder / "train.txt", folder / "train.txt"], "dev": [folder / "validation.jsonl"]}
    assert read_rows(files=files, split="train") == [f"{line}\n" for line in LINES * 2]
    assert list(read_rows(files=files, split="dev")) == LINES
    with pytest.raises(DataError, match=r"unknown split 'validation'\. Valid: dev, train"):
        read_rows(files=files, split="validation")


def test_a_single_file_is_the_split_its_name_says(folder: Path) -> None:
    assert list(read_rows(folder / "validation.jsonl", split="validation")) == LINES
    assert list(read_rows(folder / "validation.jsonl", split="train")) == LINES  # a text that is all there is
    corpus = (folder / "train.txt").rename(folder / "corpus.txt")
    assert read_rows(corpus, split="train") == read_rows(corpus, split="corpus") == [f"{line}\n" for line in LINES]
    with pytest.raises(DataError, match=r"unknown split 'validation'\. Valid: corpus, train"):
        read_rows(corpus, split="validation")


def test_unknown_split_lists_those_there(folder: Path) -> None:
    with pytest.raises(DataError, match=r"unknown split 'valid'\. Did you mean 'validation'\? Valid: .*test, train"):
        read_rows(folder, split="valid")
    with pytest.raises(DataError, match=r"builtin:text: unknown split 'test'\. Valid: .*pretrain, train, validation"):
        read_rows("builtin:text", split="test")


def test_text_column_is_found_or_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps({"title": "t", "body": "b", "size": 3}) + "\n")
    assert list(read_rows(file, split="train", text_column="body")) == ["b"]
    with pytest.raises(DataError, match=r"has 2 columns of strings \(title, body\).*Set text_column to one of"):
        read_rows(file, split="train")
    with pytest.raises(DataError, match=r"unknown text column 'boddy'\. Did you mean 'body'\? Valid: .*size, title"):
        read_rows(file, split="train", text_column="boddy")
    with pytest.raises(DataError, match=r"must hold strings; size of .* holds int64\. Columns of strings: title"):
        read_rows(file, split="train", text_column="size")
    (tmp_path / "test.jsonl").write_text(json.dumps({"body": "only", "size": 3}) + "\n")
    assert list(read_rows(tmp_path / "test.jsonl", split="test")) == ["only"]


def test_rows_without_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    with pytest.raises(DataError, match=r"every row must have text; 1 rows of .* have none in text"):
        read_rows(tmp_path, split="train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"data file .*train\.txt is empty"),
        (b" \n\n", r"data file .*train\.txt is empty"),
        (b"abc\xff\xfe", r"text file .*train\.txt is not UTF-8 at byte 3\. If it is WINDOWS-1252, convert it"),
        (b"abc\0def", r"text file .*train\.txt holds NUL bytes"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path, split="train")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"an existing file, folder or hub id; /nowhere/train\.txt is not"):
        read_rows("/nowhere/train.txt", split="train")
    with pytest.raises(DataError, match=r"an existing file, folder or hub id; /nowhere/train\.jsonl is not"):
        read_rows("/nowhere/train.jsonl", split="train")
    with pytest.raises(DataError, match=r"an existing file, folder or hub id; /nowhere is not there"):
        read_rows("/nowhere", split="train")
    with pytest.raises(DataError, match=r"must hold SPLIT\.txt, .*, SPLIT\.parquet, .*; .* holds none"):
        read_rows(tmp_path, split="train")
    (tmp_path / "train.jsonl").write_text("not json\n")
    with pytest.raises(DataError, match=r"\.jsonl file .*train\.jsonl cannot be read"):
        read_rows(tmp_path, split="train")
    (tmp_path / "test.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"\.parquet file .*test\.parquet cannot be read"):
        read_rows(tmp_path, split="test")
    (tmp_path / "validation.jsonl").touch()
    with pytest.raises(DataError, match=r"data file .*validation\.jsonl is empty"):
        read_rows(tmp_path, split="validation")
    other = tmp_path / "a.txt"
    other.write_text("a")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"must be of one kind of \.txt.*got a\.txt, b\.parquet"):
        read_rows(files={"train": [other, tmp_path / "b.parquet"]}, split="train")
    with pytest.raises(DataError, match=r"must name its text: `path`"):
        read_rows(split="train")


def test_dataset_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"nobody/nothing \(small\) did not load: .*give local files"):
        read_rows("nobody/nothing", name="small", split="train")
    with pytest.raises(DataError, match=r"unknown built-in text 'builtin:txt'\. Did you mean 'builtin:text'"):
        read_rows("builtin:txt", split="train")


def test_training_blocks_are_those_of_the_protocol(characters: PreTrainedTokenizerFast, rows: list[str]) -> None:
    many = rows * 95
    packed = pack_training_blocks(many, characters, 32).tokens
    assert packed.dtype == np.int64
    assert np.array_equal(packed.ravel(), blocks(many, characters, 32).tokens)


def test_packed_blocks_are_kept_and_read_from_disk(
    characters: PreTrainedTokenizerFast, rows: list[str], tmp_path: Path
) -> None:
    first = pack_training_blocks(rows, characters, 16, folder=tmp_path).tokens
    (place,) = tmp_path.iterdir()
    assert sorted(file.name for file in place.iterdir()) == ["blocks.json", "blocks.npy", "files.json"]
    stamp = (place / "blocks.npy").stat().st_mtime_ns
    again = pack_training_blocks(list(rows), characters, 16, folder=tmp_path).tokens
    assert (place / "blocks.npy").stat().st_mtime_ns == stamp
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    assert np.array_equal(first, again)
    assert np.array_equal(again, pack_training_blocks(rows, characters, 16).tokens)


def test_other_rows_tokenisers_and_sizes_have_other_places(
    characters: PreTrainedTokenizerFast, rows: list[str], tmp_path: Path
) -> None:
    pack_training_blocks(rows, characters, 16, folder=tmp_path)
    pack_training_blocks(rows, characters, 32, folder=tmp_path)
    pack_training_blocks([*rows[:-1], rows[-1] + "."], characters, 16, folder=tmp_path)
    pack_training_blocks(["".join(rows[:2]), *rows[2:]], characters, 16, folder=tmp_path)
    other = PreTrainedTokenizerFast(tokenizer_object=characters.backend_tokenizer, unk_token=chr(1))
    other.add_tokens(["the"])
    pack_training_blocks(rows, other, 16, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_too_short_training_text(characters: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"takes 64 tokens; it has 5\. Use more data, or a smaller block size"):
        pack_training_blocks(["short"], characters, 64, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_first_calibration_windows_are_the_start_of_the_stream(
    characters: PreTrainedTokenizerFast, rows: list[str]
) -> None:
    windows = calibration_windows(rows, characters, windows=5, length=20, mode="first")
    assert np.array_equal(windows.ravel(), stream(rows, characters, 20).tokens[:100])
    assert windows.dtype == np.int64


def test_shuffled_windows_are_the_first_in_another_order(characters: PreTrainedTokenizerFast, rows: list[str]) -> None:
    draw: dict[str, Any] = {"windows": 6, "length": 20}
    first = calibration_windows(rows, characters, **draw, mode="first")
    one, same, other = (calibration_windows(rows, characters, **draw, mode="shuffled", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert sorted(one.tolist()) == sorted(other.tolist()) == sorted(first.tolist())


def test_random_calibration_windows_are_drawn_by_the_seed(characters: PreTrainedTokenizerFast, rows: list[str]) -> None:
    draw: dict[str, Any] = {"windows": 6, "length": 20, "mode": "random"}
    one, same, other = (calibration_windows(rows, characters, **draw, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    text = "\n\n".join(rows)
    assert all("".join(map(chr, window)) in text for window in one)


def test_random_windows_reach_both_ends_of_the_text(characters: PreTrainedTokenizerFast) -> None:
    windows = calibration_windows(["abc"], characters, windows=40, length=2, mode="random")
    assert {"".join(map(chr, window)) for window in windows} == {"ab", "bc"}


def test_a_long_text_is_not_tokenised_whole(
    characters: PreTrainedTokenizerFast, rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunegpt.lm.calibration.CALIBRATION_CHARACTERS", 200)
    first = calibration_windows(rows, characters, windows=5, length=20, mode="first")
    assert np.array_equal(first.ravel(), stream(rows, characters, 20).tokens[:100])
    with pytest.raises(DataError, match=r"15 calibration windows of 20 tokens, which takes 300 tokens"):
        calibration_windows(rows, characters, windows=15, length=20, mode="first")
    drawn = {calibration_windows(rows, characters, windows=1, length=20, seed=seed).tobytes() for seed in range(8)}
    assert len(drawn) > 4


def test_calibration_that_cannot_be(characters: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"takes 20 tokens; it has 10"):
        calibration_windows(["a" * 10], characters, windows=1, length=20)
    with pytest.raises(DataError, match=r"2 calibration windows of 8 tokens, which takes 16 tokens; it has 10"):
        calibration_windows(["a" * 10], characters, windows=2, length=8, mode="first")
    with pytest.raises(UnknownPartError, match=r"unknown calibration mode 'last'\. Valid: .*first, joined, random"):
        calibration_windows(["a" * 10], characters, windows=1, length=8, mode="last")


@pytest.mark.shared
def test_wikitext_lines_are_the_rows_of_the_datasets_loader(wikitext2: Path) -> None:
    file = str(wikitext2 / "test.txt")
    expected = load_dataset("text", data_files=file, keep_linebreaks=True, split="train")["text"]
    assert read_rows(wikitext2, split="test") == list(expected)
