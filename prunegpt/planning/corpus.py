"""Local files of text: which there are of each split, how they are read, and which column is the text. No torch."""

import bz2
import gzip
import io
import json
import lzma
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from prunegpt.builtin import BUILTIN_TEXTS, is_builtin
from prunegpt.errors import DataError, listed, unknown
from prunegpt.planning.sources import find_local, is_path
from prunegpt.root import read_json

# Suffix -> the builder of the datasets library that reads it.
LOADERS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}
TEXT_SUFFIXES = (".txt", *LOADERS)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
DAMAGED = (OSError, EOFError, lzma.LZMAError)  # raised by what is read from :func:`opened`
BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")
_SPLITS = {  # words in the names of files and folders -> the split that they are of
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # of Dataset.save_to_disk, of DatasetDict's
_LINES = 50  # of a file that its columns are read from
_LISTED = 5


def local_splits(
    path: str | None,
    files: Mapping[str, Sequence[str]] | None,
    *,
    train_split: str = "train",
    base: Path | None = None,
) -> dict[str, tuple[Path, ...]] | None:
    """Split -> local files, or None where the text is built in or on the hub.

    Args:
        path: hub id, built-in name, a folder with SPLIT.txt and so on, or one such file: that is the split its stem
            names, and also the one that is trained on.
        files: split -> files, instead of `path`.
        train_split: the split that is trained on.
        base: the spec's folder.

    Raises:
        DataError: a file is missing, or a folder holds no text.
    """
    if files is not None:
        return {split: tuple(_local(name, base) for name in names) for split, names in files.items()}
    if path is None:
        raise DataError("data must name its text: `path` (hub id, folder, file or builtin:NAME) or `files`.")
    if is_builtin(path):
        if path not in BUILTIN_TEXTS:
            raise DataError(unknown("built-in text", path, BUILTIN_TEXTS))
        return None
    place = find_local(path, base)
    if place is not None and place.is_dir():
        found = _saved_splits(place) or _folder_splits(place)
        (only,) = found.values() if len(found) == 1 else (None,)
        return found if only is None else {**found, train_split: only}
    if place is not None:
        return {split_of(place): (place,), place.stem: (place,), train_split: (place,)}
    if is_path(path) or suffix_of(Path(path)) in TEXT_SUFFIXES:
        raise DataError(f"text must be an existing file, folder or hub id; {path} is not there. Check the path.")
    return None


def suffix_of(file: Path) -> str:
    """What kind of file it is, without its compression: .json of c4-train.00000-of-01024.json.gz."""
    return _unpacked(file).suffix


def split_of(file: Path) -> str:
    """What the name of a file says its split is, without suffixes and the number of a shard."""
    stem = _unpacked(file).stem
    return _SHARD.sub("", stem) or stem


def _unpacked(file: Path) -> Path:
    """The name of a file without its compression."""
    return file.with_suffix("") if file.suffix in COMPRESSED else file


def kind_of(files: Sequence[Path]) -> str:
    """The suffix of a split's files, by which they are read.

    Raises:
        DataError: they are of several kinds, of none that is read, or empty.
    """
    kinds = sorted({suffix_of(file) for file in files})
    if len(kinds) != 1 or kinds[0] not in TEXT_SUFFIXES:
        raise DataError(
            f"the files of a split must be of one kind of {', '.join(TEXT_SUFFIXES)}, got "
            f"{listed(file.name for file in files)}. Convert them, or give them to different splits."
        )
    for file in files:
        if not file.stat().st_size:
            raise DataError(f"data file {file} is empty. Give another file.")
    return kinds[0]


def _saved_splits(folder: Path) -> dict[str, tuple[Path, ...]] | None:
    """The files of Dataset.save_to_disk or DatasetDict.save_to_disk; None of another folder."""
    if (folder / _SAVED_SPLITS).is_file():
        names = _read(folder / _SAVED_SPLITS).get("splits") or ()
        return {str(name): _saved_files(folder / str(name)) for name in names}
    if (folder / _SAVED).is_file():
        return {str(_read(folder / _SAVED).get("_split") or "train"): _saved_files(folder)}
    return None


def _saved_files(folder: Path) -> tuple[Path, ...]:
    found = tuple(folder / str(item["filename"]) for item in _read(folder / _SAVED).get("_data_files") or ())
    missing = [file for file in found if not file.is_file()]
    if not found or missing:
        raise DataError(
            f"a dataset that save_to_disk wrote must have all its files; {folder} lacks "
            f"{missing[0].name if missing else 'any'}. Copy the folder again."
        )
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file.name} of a saved dataset must be JSON; {file} cannot be read: {error}.") from error
    return content if isinstance(content, dict) else {}


def _folder_splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """SPLIT.txt, the parts SPLIT-00000-of-00002.parquet and so on, or folders of them.

    The folders are named after their split, or there is one: of the data, or of a configuration.
    """
    below = [item for item in sorted(folder.iterdir()) if not item.name.startswith(".")]
    found: dict[str, list[Path]] = {}
    for file in below:
        if file.is_file() and suffix_of(file) in TEXT_SUFFIXES:
            found.setdefault(split_of(file), []).append(file)
    folders = [item for item in below if item.is_dir()]
    for inner in folders if not found else ():
        if (split := _SPLITS.get(inner.name.lower())) is None:
            continue
        parts = sorted(file for file in inner.iterdir() if file.is_file() and suffix_of(file) in TEXT_SUFFIXES)
        if parts:
            found.setdefault(split, []).extend(parts)
    if not found:
        inside = [item for item in folders if any(suffix_of(file) in TEXT_SUFFIXES for file in item.rglob("*"))]
        if len(inside) == 1:
            return _folder_splits(inside[0])
        hint = f" Give one of {listed(map(str, inside), _LISTED)}." if inside else ""
        raise DataError(
            f"a text folder must hold SPLIT{', SPLIT'.join(TEXT_SUFFIXES)}, each maybe with {' or '.join(COMPRESSED)} "
            f"behind it; {folder} holds none.{hint}"
        )
    splits = {split: tuple(parts) for split, parts in found.items()}
    for split, files in list(splits.items()):  # c4-train is found as train too
        for word in re.split(r"[-_. ]", split.lower()):
            splits.setdefault(_SPLITS.get(word, split), files)
    return splits


def _local(name: str, base: Path | None) -> Path:
    path = find_local(name, base)
    if path is None or not path.is_file():
        raise DataError(f"data file {name} does not exist. Paths count from here or the spec's folder.")
    return path


# -- content ---------------------------------------------------------------------------------------------------------


def opened(file: Path) -> IO[bytes]:
    """A file's content, decompressed by its suffix."""
    match file.suffix:
        case ".gz":
            return io.BufferedReader(gzip.open(file))
        case ".bz2":
            return bz2.open(file)
        case ".xz":
            return lzma.open(file)
        case ".zst":
            import pyarrow  # here, because planning is quick without it

            stream: IO[bytes] = io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))
            return stream
    return file.open("rb")


def begins_with_mark(file: Path) -> bool:
    """Whether it begins with a byte order mark of UTF-8, which is no part of the text."""
    try:
        with opened(file) as stream:
            return stream.read(len(BOM)) == BOM
    except DAMAGED:  # said when it is read
        return False


def encoding_of(content: bytes) -> str:
    """What bytes that are no UTF-8 are probably written in, as `iconv` calls it."""
    if (marked := _OTHER_BOMS.get(content[:2])) is not None:
        return marked
    if content[1::2].count(0) > len(content) // 4:
        return "UTF-16LE"
    if content[::2].count(0) > len(content) // 4:
        return "UTF-16BE"
    try:
        content.decode("cp1252")
    except UnicodeDecodeError:
        return "ISO-8859-1"
    return "WINDOWS-1252"


def text_column(columns: Mapping[str, str], asked: str | None, source: str) -> str:
    """Which column is the text.

    Args:
        columns: name -> `string`, `structure` (a list, or a mapping that was not flattened), or another type.
        asked: of the spec; else the one called `text`, or the only one of strings with no structure beside it. The
            fields of a mapping are columns with a dot: data.text.
        source: names the dataset in errors.

    Raises:
        DataError: it is not there, holds no strings, or is not clear.
    """
    strings = [name for name, kind in columns.items() if kind == "string"]
    structures = [name for name, kind in columns.items() if kind == "structure"]
    if asked is not None:
        if asked not in columns:
            raise DataError(f"{source}: {unknown('text column', asked, columns)}")
        if asked not in strings:
            kind = "lists or mappings" if asked in structures else columns[asked]
            raise DataError(
                f"a text column must hold strings; {asked} of {source} holds {kind}. Columns of strings: "
                f"{listed(strings)}."
            )
        return asked
    named = [name for name in strings if name.rpartition(".")[2] == "text"]
    if "text" in strings or len(named) == 1:
        return "text" if "text" in strings else named[0]
    if len(strings) == 1 and not structures:
        return strings[0]
    hint = f"Set text_column to one of {listed(strings)}" if strings else "Write the text into a column of strings"
    beside = f", beside the lists or mappings {listed(structures, _LISTED)}" if structures else ""
    raise DataError(
        f"the text column must be clear; {source} has {len(strings)} columns of strings ({listed(strings)}){beside}, "
        f"and none is called text. {hint}{', or write the text into one' if strings and structures else ''}."
        f"{' For chat messages set messages to their column.' if structures else ''}"
    )


def messages_column(columns: Mapping[str, str], column: str, source: str) -> None:
    """Checks that a dataset has a column of chat messages.

    Args:
        columns: as :func:`text_column` takes them.

    Raises:
        DataError: it has no such column, or one of something else.
    """
    if column not in columns:
        raise DataError(f"{source}: {unknown('column of messages', column, columns)}")
    if columns[column] != "structure":
        raise DataError(
            f"a column of messages holds lists of {{role, content}}; {column} of {source} holds {columns[column]}s. "
            f"Name another column, or use text_column for plain text."
        )


def column_in(files: Sequence[Path], asked: str | None, messages: str | None = None) -> str | None:
    """The text column of files of one kind, as far as their beginning shows; None where they have none or it does not.

    Args:
        messages: column of chat messages, which is looked for instead.

    Raises:
        DataError: it is not clear, or not there.
    """
    kind, source = suffix_of(files[0]), listed(map(str, files), _LISTED)
    if messages is not None and kind == ".txt":
        raise DataError(f"chat messages are read from .jsonl, .json or .parquet files; {source} is plain text.")
    try:
        if kind in (".jsonl", ".ndjson", ".json"):
            columns = _of_rows(_first_rows(files[0]))
        elif kind in (".parquet", ".arrow") and files[0].suffix not in COMPRESSED:
            columns = _of_schema(files[0])
        else:
            return None
    except (ValueError, *DAMAGED):  # said when it is read
        return None
    if messages is not None:
        if columns:
            messages_column(columns, messages, source)
        return None
    return text_column(columns, asked, source) if columns else None


def _first_rows(file: Path) -> list[dict[str, Any]]:
    with opened(file) as stream:
        lines = [line for line in islice(stream, _LINES) if line.strip()]
    rows = [json.loads(line) for line in lines]
    return rows if all(isinstance(row, dict) for row in rows) else []


def _of_rows(rows: Iterable[Mapping[str, Any]], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, Mapping):
                found |= _of_rows([value], f"{prefix}{name}.")
            elif value is not None:
                kind = "string" if isinstance(value, str) else "structure" if isinstance(value, list) else "number"
                found.setdefault(prefix + name, kind)
    return found


def _of_schema(file: Path) -> dict[str, str]:
    import pyarrow  # here, because planning is quick without it
    import pyarrow.parquet

    if file.suffix == ".parquet":
        schema = pyarrow.parquet.read_schema(file)
    else:
        with pyarrow.memory_map(str(file)) as stream:
            schema = pyarrow.ipc.open_stream(stream).schema
    return kinds_of(schema)


def kinds_of(schema: Any, prefix: str = "") -> dict[str, str]:
    """The columns of an Arrow schema as :func:`text_column` takes them, fields of mappings with a dot."""
    import pyarrow.types as types

    found: dict[str, str] = {}
    for field in schema:
        if types.is_struct(field.type):
            found |= kinds_of(field.type, f"{prefix}{field.name}.")
        elif types.is_string(field.type) or types.is_large_string(field.type) or types.is_string_view(field.type):
            found[prefix + field.name] = "string"
        else:
            nested = types.is_nested(field.type)
            found[prefix + field.name] = "structure" if nested else str(field.type)
    return found
