"""Datasets, from the hub or local files, as rows; and their rows as the sequences of training and calibration.

Rows are what the causal-language-modelling example of transformers trains on: the rows of a dataset, or the lines of a
text file, with their ends: that example keeps line breaks by default. Documents are what a text is when it
is not cut into lines: a text file whole, a dataset's rows as they are.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets import Dataset, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetGenerationError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from prunegpt.builtin import is_builtin
from prunegpt.errors import DataError, unknown
from prunegpt.lm.tokenizers import tokenizer_fingerprint
from prunegpt.lm.windows import Prepared
from prunegpt.planning.corpus import (
    BOM,
    COMPRESSED,
    DAMAGED,
    LOADERS,
    begins_with_mark,
    column_in,
    encoding_of,
    kind_of,
    kinds_of,
    local_splits,
    messages_column,
    opened,
    text_column,
)
from prunegpt.root import publishing, seal, sha256, whole, write_json

ROWS_A_BATCH = 1000  # rows that the example packs together; what is left of each such batch is dropped
_PACKING = "blocks-2"  # part of the cache key; to be raised when packing changes
BLANK_LINE = "\n\n"  # joins rows that become one string

Spans = Sequence[tuple[int, int]]  # parts of a row: first character, and the one after the last


class Split(NamedTuple):
    """One split of a dataset.

    Attributes:
        rows: a list, or a column that is read from disk when it is indexed.
        column: which column was taken for the text, where nobody named it and it is not called `text`; else empty.
    """

    rows: Sequence[str]
    column: str = ""


def read_split(
    path: str | Path | None = None,
    *,
    name: str | None = None,
    split: str,
    files: Mapping[str, Sequence[str | Path]] | None = None,
    text_column: str | None = None,
    revision: str | None = None,
    whole: bool = False,
) -> Split:
    """The rows of one split: the lines of a text file with their ends, or the rows of a dataset's text column.

    Args:
        path: hub id, builtin:NAME, a folder with SPLIT.txt, SPLIT.jsonl or SPLIT.parquet and so on, one that
            `datasets` saved, or one such file. A single file is the split its stem names, and also `train`.
        name: configuration of a hub dataset.
        split: which part to read.
        files: split -> files, instead of `path`.
        text_column: column of the text; default `text`, or the only column of strings.
        revision: branch, tag or commit of a hub dataset.
        whole: a text file is one document and not one row a line.

    Raises:
        DataError: a file is missing, empty or not text, or the split or the column does not exist or is not clear.
    """
    local = _local(path, files, split)
    if local is None and is_builtin(str(path)):
        from prunegpt.builtin.text import rows

        return Split(rows(split))
    if local is not None and kind_of(local) == ".txt":
        texts = [read_text(file) for file in local]
        return Split(texts if whole else [line for text in texts for line in _lines(text)])
    return _text_of(*_dataset(path, name, split, local, revision), text_column)


def read_conversations(
    path: str | Path | None = None,
    *,
    messages: str,
    split: str,
    name: str | None = None,
    files: Mapping[str, Sequence[str | Path]] | None = None,
    revision: str | None = None,
) -> Sequence[Any]:
    """The chat messages of one split: of each row a list of {role, content}.

    Args:
        messages: their column.
        path, split, name, files, revision: as :func:`read_split` takes them.

    Raises:
        DataError: as there, or the column holds something else.
    """
    local = _local(path, files, split)
    if local is None and is_builtin(str(path)):
        raise DataError(f"chat messages are read from datasets with a column of them; {path} is plain text.")
    if local is not None:
        column_in(local, None, messages)  # refuses what holds none
    dataset, source = _dataset(path, name, split, local, revision)
    messages_column(kinds_of(dataset.features.arrow_schema), messages, source)
    rows: Sequence[Any] = dataset[messages]
    return rows


def _local(
    path: str | Path | None, files: Mapping[str, Sequence[str | Path]] | None, split: str
) -> tuple[Path, ...] | None:
    """The local files of a split; None where the text is built in or on the hub."""
    named = {part: [str(file) for file in given] for part, given in files.items()} if files is not None else None
    local = local_splits(None if path is None else str(path), named)
    if local is not None and split not in local:
        raise DataError(f"{path or 'files'}: {unknown('split', split, local)}")
    return None if local is None else local[split]


def read_rows(path: str | Path | None = None, **source: Any) -> Sequence[str]:
    """The rows that :func:`read_split` gives."""
    return read_split(path, **source).rows


def read_documents(path: str | Path | None = None, **source: Any) -> Sequence[str]:
    """The documents of one split: as `read_rows`, but a text file is one document and not one row a line."""
    return read_split(path, **source, whole=True).rows


def read_text(path: str | Path) -> str:
    """The content of a text file, with line ends as "\\n" and without a byte order mark.

    Raises:
        DataError: the file is missing, empty, or not UTF-8 text.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"text file {file} does not exist. Check the path.")
    try:
        with opened(file) as stream:
            content = stream.read()
        text = io.TextIOWrapper(io.BytesIO(content.removeprefix(BOM)), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"text file {file} is not UTF-8 at byte {error.start}. If it is {encoding_of(content)}, convert it: iconv "
            f"-f {encoding_of(content)} -t UTF-8 {file} > NEW. Else check that it is text at all."
        ) from error
    except DAMAGED as error:
        raise DataError(f"text file {file} cannot be read: {error}. Copy it again.") from error
    if "\0" in text:
        wide = encoding_of(content)
        hint = f"Convert it: iconv -f {wide} -t UTF-8 {file} > NEW. Else c" if wide.startswith("UTF-16") else "C"
        raise DataError(f"text file {file} holds NUL bytes. {hint}heck that it is no binary file.")
    if not text.strip():
        raise DataError(f"data file {file} is empty. Give another file.")
    return text


class Packed(NamedTuple):
    """Sequences to train on.

    Attributes:
        tokens: [blocks, block_size].
        counted: which of them the loss counts, [blocks, block_size]; None: all.
    """

    tokens: NDArray[np.int64]
    counted: NDArray[np.bool_] | None = None


def pack_training_blocks(
    rows: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    *,
    folder: Path | None = None,
    spans: Sequence[Spans] | None = None,
) -> Packed:
    """Token blocks, packed as the causal-language-modelling example of transformers packs them.

    Each row is tokenised with the tokeniser's own special tokens (prepared rows without); within each batch of 1,000
    rows the tokens are concatenated and cut into blocks, and what is left of the batch is dropped.

    With spans a token counts where it begins inside one of its row's. The first token of a block, which nothing
    predicts, never counts, and blocks without a token that counts are dropped.

    Args:
        rows: the text.
        tokenizer: the model's tokeniser.
        block_size: tokens a block.
        folder: where blocks are kept, by a key of rows, spans, tokeniser and block size; they are then memory-mapped.
        spans: of each row, the parts of it that the loss counts, in characters.

    Raises:
        DataError: the text does not fill one block.
    """
    if folder is None:
        return _pack(rows, tokenizer, block_size, spans)
    place = folder / _packing_key(rows, tokenizer, block_size, spans)
    if not whole(place, deep=True):
        packed = _pack(rows, tokenizer, block_size, spans)
        with publishing(place) as temporary:
            np.save(temporary / "blocks.npy", packed.tokens)
            if packed.counted is not None:
                np.save(temporary / "counted.npy", packed.counted)
            about = {"blocks": len(packed.tokens), "block_size": block_size, "packing": _PACKING}
            write_json(temporary / "blocks.json", about)
            seal(temporary)
    kept, counted = (place / f"{name}.npy" for name in ("blocks", "counted"))
    return Packed(
        np.load(kept, mmap_mode="r", allow_pickle=False),
        None if spans is None else np.load(counted, mmap_mode="r", allow_pickle=False),
    )


def require_tokens(have: int, need: int, what: str, hint: str = "a smaller block size") -> None:
    """Raises DataError, saying how many tokens there are and are needed, where there are too few."""
    if have < need:
        raise DataError(
            f"the dataset must fill {what}, which takes {need} tokens; it has {have}. Use more data, or {hint}."
        )


def _pack(
    rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int, spans: Sequence[Spans] | None
) -> Packed:
    packed: list[NDArray[np.int64]] = []
    longest = 0
    special = not isinstance(rows, Prepared)
    for start in range(0, len(rows), ROWS_A_BATCH):
        batch = list(rows[start : start + ROWS_A_BATCH])
        offsets = spans is not None
        encoded = tokenizer(batch, add_special_tokens=special, return_offsets_mapping=offsets, verbose=False)
        tokens = np.fromiter(chain.from_iterable(encoded["input_ids"]), dtype=np.int64)  # [tokens]
        longest = max(longest, len(tokens))
        whole_blocks = len(tokens) // block_size
        parts = [tokens]
        if spans is not None:
            here = zip(encoded["offset_mapping"], spans[start : start + ROWS_A_BATCH], strict=True)
            parts.append(np.concatenate([_inside(*row) for row in here]))  # [tokens]
        if whole_blocks:
            cut = [part[: whole_blocks * block_size].reshape(whole_blocks, block_size) for part in parts]
            packed.append(np.stack(cut))  # [1 or 2, blocks, block_size]
    require_tokens(longest, block_size, f"a block of {block_size} tokens in one batch of {ROWS_A_BATCH} rows")
    found = np.concatenate(packed, axis=1)  # [1 or 2, blocks, block_size]
    if spans is None:
        return Packed(found[0])
    counted = found[1].astype(bool)  # [blocks, block_size]
    counted[:, 0] = False
    some = counted.any(axis=1)  # [blocks]
    if not some.any():
        raise DataError(
            f"loss_on: responses needs at least one response; none of {len(rows)} conversations has a message of the "
            f"role assistant in its whole blocks of {block_size} tokens. Use other data, or loss_on: all."
        )
    return Packed(found[0][some], counted[some])


def _inside(offsets: Sequence[tuple[int, int]], spans: Spans) -> NDArray[np.int64]:
    """Which tokens of a row begin inside one of its spans, [tokens], 0 or 1."""
    begins = np.asarray([begin for begin, _ in offsets], dtype=np.int64)  # [tokens]
    inside = np.zeros_like(begins)
    for begin, end in spans:
        inside |= (begins >= begin) & (begins < end)
    return inside


def _packing_key(
    rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int, spans: Sequence[Spans] | None
) -> str:
    digest = hashlib.sha256(f"{_PACKING} {block_size} {tokenizer_fingerprint(tokenizer)} ".encode())
    for start in range(0, len(rows), ROWS_A_BATCH):
        digest.update(json.dumps(list(rows[start : start + ROWS_A_BATCH])).encode())
    if isinstance(rows, Prepared):
        digest.update(b" prepared")
    if spans is not None:
        digest.update(json.dumps(list(spans)).encode())
    return digest.hexdigest()[:32]


def _dataset(
    path: str | Path | None, name: str | None, split: str, local: Sequence[Path] | None, revision: str | None
) -> tuple[Dataset, str]:
    """A split of local files or of the hub, and what messages call it."""
    if local is not None:
        return _of_files(local), ", ".join(map(str, local))
    try:
        return load_dataset(str(path), name, split=split, revision=revision), str(path)
    except Exception as error:  # the hub, the network and dataset scripts raise anything
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"dataset {path}{f' ({name})' if name else ''} did not load: "
            f"{told}{_splits_there(str(path), name, split, revision)}"
        ) from error


def _of_files(files: Sequence[Path]) -> Dataset:
    kind = kind_of(files)
    more: dict[str, Any] = {"sep": "\t"} if kind == ".tsv" else {}
    if kind in (".csv", ".tsv"):  # an empty cell is an empty text, and NA two letters
        more |= {"keep_default_na": False}
    try:
        # The datasets library takes a file of the same date for the same file: the name makes its cache go by content.
        content = hashlib.sha256(" ".join(sha256(file) for file in files).encode()).hexdigest()[:32]
        kept = Path(datasets.config.HF_DATASETS_CACHE) / "prunegpt-plain" / content
        plain = [str(_plain(file, kept / f"{index:05d}{kind}")) for index, file in enumerate(files)]
        return load_dataset(LOADERS[kind], content, data_files=plain, split="train", **more)
    except (DatasetGenerationError, ValueError, *DAMAGED) as error:
        names = ", ".join(map(str, files))
        raise DataError(f"{kind} file {names} cannot be read: {error.__cause__ or error}. Check the file.") from error


def _plain(file: Path, copy: Path) -> Path:
    """The file itself, or a copy without compression and byte order mark, made once."""
    marked = begins_with_mark(file)
    if file.suffix not in COMPRESSED and not marked:
        return file
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with opened(file) as source, NamedTemporaryFile(dir=copy.parent, delete=False) as target:
            source.read(len(BOM) if marked else 0)
            shutil.copyfileobj(source, target)
        Path(target.name).replace(copy)
    return copy


def _lines(text: str) -> list[str]:
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]  # the last one ended without
    return lines if lines[-1] else lines[:-1]


def _splits_there(path: str, name: str | None, split: str, revision: str | None) -> str:
    """The end of a message: the splits a dataset has, where the one asked for is not among them."""
    try:
        names = get_dataset_split_names(path, name, revision=revision)
    except Exception:  # only to add details to an error that is being raised anyway
        return ". Check the name, the configuration and the network, or give local files."
    if split in names:
        return ". Check the network, or give local files."
    return f". {unknown('split', split, names)}"


def _text_of(dataset: Dataset, source: str, asked: str | None) -> Split:
    kinds = kinds_of(dataset.features.arrow_schema)
    column = text_column(kinds, asked, source)
    if "." in column and column not in dataset.features:
        dataset = dataset.flatten()
    empty = dataset.data.column(column).null_count
    if empty:
        raise DataError(f"every row must have text; {empty} rows of {source} have none in {column}. Remove them.")
    rows: Sequence[str] = dataset[column]
    return Split(rows, "" if asked or column == "text" else column)
