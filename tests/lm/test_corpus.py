"""A text with a known content gives the same rows from every kind of file that people have."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunegpt.errors import DataError
from prunegpt.lm.data import read_documents, read_rows, read_split, read_text
from prunegpt.planning.corpus import COMPRESSED, LOADERS, column_in, local_splits, text_column

ROWS = ["the first", "", '  an indented, "quoted" one ', "naïve 漢字 🙂", "NA", "a\ttab", "3", "the last"]
LETTERS = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def _table(rows: Sequence[str], separator: str) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator="\n")
    writer.writerows([["id", "text"], *([index, row] for index, row in enumerate(rows))])
    return file.getvalue().encode()


def _lines(rows: Sequence[str]) -> bytes:
    return "".join(json.dumps({"id": index, "text": row}) + "\n" for index, row in enumerate(rows)).encode()


def _arrow(rows: Sequence[str]) -> bytes:
    table = pyarrow.table({"text": list(rows)})
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _parquet(rows: Sequence[str]) -> bytes:
    sink = io.BytesIO()
    Dataset.from_dict({"text": list(rows)}).to_parquet(sink)
    return sink.getvalue()


def _zstd(content: bytes) -> bytes:
    packed: bytes = pyarrow.compress(content, codec="zstd", asbytes=True)
    return packed


WRITERS: Mapping[str, Callable[[Sequence[str]], bytes]] = {
    ".txt": lambda rows: "".join(f"{row}\n" for row in rows).encode(),
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": lambda rows: json.dumps([{"text": row} for row in rows]).encode(),
    ".csv": lambda rows: _table(rows, ","),
    ".tsv": lambda rows: _table(rows, "\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
}
PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _zstd,
}


def read(folder: Path, split: str = "train") -> list[str]:
    return [row.removesuffix("\n") for row in read_rows(folder, split=split)]


def test_every_format_has_a_writer() -> None:
    assert set(WRITERS) == {".txt", *LOADERS}
    assert set(PACKERS) == {"", *COMPRESSED}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_rows_in_every_compression(suffix: str, tmp_path: Path) -> None:
    for packed, pack in PACKERS.items():
        folder = tmp_path / f"in{packed}"
        folder.mkdir()
        (folder / f"train{suffix}{packed}").write_bytes(pack(WRITERS[suffix](ROWS)))
        assert read(folder) == ROWS, packed


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.text(LETTERS, min_size=1, max_size=20), min_size=1, max_size=5),
    suffix=st.sampled_from(sorted(WRITERS)),
    packed=st.sampled_from(sorted(PACKERS)),
    mark=st.booleans(),
)
def test_any_text_in_any_format(
    rows: list[str], suffix: str, packed: str, mark: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [f"{row}." for row in rows]
    folder = tmp_path_factory.mktemp("any")
    marked = b"\xef\xbb\xbf" if mark and suffix not in (".parquet", ".arrow") else b""
    (folder / f"train{suffix}{packed}").write_bytes(PACKERS[packed](marked + WRITERS[suffix](rows)))
    assert read(folder) == rows


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITERS if suffix not in (".parquet", ".arrow")])
def test_a_byte_order_mark_is_no_part_of_the_text(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"train{suffix}").write_bytes(b"\xef\xbb\xbf" + WRITERS[suffix](ROWS))
    assert read(tmp_path) == ROWS


LAYOUTS: Mapping[str, Sequence[str]] = {
    "shards of C4": ("c4-train.00000-of-00002.json.gz", "c4-train.00001-of-00002.json.gz"),
    "in its folder": ("en/c4-train.00000-of-00002.json.gz", "en/c4-train.00001-of-00002.json.gz"),
    "of the hub": ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
    "a folder a split": ("train/part-0.parquet", "train/part-1.parquet"),
    "a folder of parts": ("part-0.parquet", "part-1.parquet"),
    "numbered": ("train_0.jsonl", "train_1.jsonl"),
    "another word": ("training.csv",),
}


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_files_of_a_split_are_found(names: Sequence[str], tmp_path: Path) -> None:
    half = len(ROWS) // len(names)
    for index, name in enumerate(names):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        rows = ROWS[index * half : (index + 1) * half]
        if file.suffix == ".gz":
            file.write_bytes(gzip.compress(_lines(rows)))
        else:
            file.write_bytes(WRITERS[file.suffix](rows))
    assert read(tmp_path) == ROWS


def test_what_datasets_saved_is_read(tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"text": ROWS})
    dataset.save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict(validation=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "two")
    assert read(tmp_path / "one") == ROWS
    assert read(tmp_path / "two", "validation") == ROWS
    assert read(tmp_path / "two", "test") == ROWS[:1]
    with pytest.raises(DataError, match=r"unknown split 'train'\. Valid: test, validation"):
        read(tmp_path / "two")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"must have all its files; .*one lacks data-00000-of-00002\.arrow"):
        read(tmp_path / "one")


def test_several_folders_are_refused_with_their_names(tmp_path: Path) -> None:
    for name in ("en", "de"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_text("a")
    with pytest.raises(DataError, match=r"holds none\. Give one of .*de, .*en\."):
        local_splits(str(tmp_path), None)


# -- columns ---------------------------------------------------------------------------------------------------------

UNCLEAR = {
    "a url": {"url": "http://a", "raw": {"words": ["a"]}},
    "an id": {"id": "doc-0", "tokens": ["a", "b"]},
    "a description": {"description": "d", "data": [{"title": "t"}]},
    "two": {"a": "x", "b": "y"},
    "none": {"n": 1},
}


@pytest.mark.parametrize("row", UNCLEAR.values(), ids=UNCLEAR.keys())
def test_a_column_that_may_not_be_the_text_is_refused_before_and_when_it_is_read(
    row: dict[str, object], tmp_path: Path
) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="the text column must be clear") as planned:
        column_in([file], None)
    with pytest.raises(DataError, match="the text column must be clear") as found:
        read_rows(file, split="train")
    assert str(planned.value) == str(found.value)


@pytest.mark.parametrize(
    ("row", "column", "named"),
    [
        ({"body": "x", "n": 1}, "body", "body"),  # the only one: part of the protocol
        ({"text": "x", "url": "u", "tags": ["t"]}, "text", ""),
        ({"data": {"text": "x"}}, "data.text", "data.text"),
        ({"url": "u", "raw": {"text": "x", "n": 1}}, "raw.text", "raw.text"),
    ],
)
def test_a_column_that_nobody_named(row: dict[str, object], column: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert column_in([file], None) == column
    found = read_split(file, split="train")
    assert (list(found.rows), found.column) == (["x"], named)
    assert read_split(file, split="train", text_column=column).column == ""
    parquet = tmp_path / "test.parquet"
    Dataset.from_list([row]).to_parquet(parquet)
    assert column_in([parquet], None) == column
    assert list(read_split(parquet, split="test").rows) == ["x"]


def test_lists_are_no_text() -> None:
    with pytest.raises(DataError, match=r"must hold strings; messages of x holds lists or mappings\. .*: id"):
        text_column({"id": "string", "messages": "structure"}, "messages", "x")


# -- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
def test_the_advised_conversion_gives_the_text(encoding: str, tmp_path: Path) -> None:
    text = "Ein schöner Tag im Café, für 3 Öre.\n" * 3
    file = tmp_path / "train.txt"
    file.write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match="iconv -f") as raised:
        read_text(file)
    advised = re.search(r"iconv -f (\S+) -t UTF-8 (\S+) > NEW", str(raised.value))
    assert advised
    assert Path(advised[2]) == file
    file.write_bytes(file.read_bytes().decode(advised[1]).encode("utf-8"))  # as iconv does
    assert read_text(file).removeprefix("\ufeff") == text
    assert list(read_documents(file, split="train"))
