"""Reads packed.safetensors, the weights of a pruned model without their zeros. Needs PyTorch, NumPy and safetensors.

This file travels with the weights and imports nothing else:

    python unpack.py FOLDER OUT     # writes an ordinary transformers folder
    tensors = unpack.load(FOLDER)   # name -> tensor, bit for bit what was packed

Of a sparse tensor NAME the file holds NAME:bitmask, one bit per weight in row-major order, the first in the lowest bit
of a byte, and the values of the bits that are set. Other tensors are whole. Values are NAME:values, or NAME:high and
NAME:low: their upper bytes, deflated, and the rest of each. Shapes, dtypes, counts and a SHA-256 of all bytes are in
the metadata.
"""

import hashlib
import json
import math
import shutil
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILE = "packed.safetensors"
VERSION = 1
WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
_LARGEST_HEADER = 100_000_000  # bytes
Parts = dict[str, "np.ndarray[Any, Any]"]  # uint8, by name


class PackedError(ValueError):
    """A file that is damaged, or none of ours."""


def load(place: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a packed file or of the folder that holds it: name -> torch.Tensor.

    Raises:
        PackedError: with what is wrong; nothing is allocated by sizes that the file does not have.
    """
    path = Path(place) / FILE if Path(place).is_dir() else Path(place)
    about, parts = read(path)
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(name.encode())
        digest.update(parts[name].data)
    if digest.hexdigest() != about["sha256"]:
        raise _wrong(path, "its bytes must have the SHA-256 they were written with; they were changed")
    return {name: _tensor(path, name, entry, parts) for name, entry in about["tensors"].items()}


def read(path: Path) -> tuple[dict[str, Any], Parts]:
    """The metadata of a packed file and its parts, name -> bytes on the disk; sizes are checked, not values."""
    if not path.is_file():
        raise _wrong(path, "there is no such file")
    size = path.stat().st_size
    if size < 8:
        raise _wrong(path, f"it must begin with the length of its header; it has {size} bytes")
    blob = np.memmap(path, dtype=np.uint8, mode="r")
    (length,) = struct.unpack("<Q", blob[:8].tobytes())
    if length > min(size - 8, _LARGEST_HEADER):
        raise _wrong(path, f"its header must be within the file; it names {length:,} bytes and the file has {size:,}")
    try:
        header = json.loads(blob[8 : 8 + length].tobytes().decode())
        metadata = header.pop("__metadata__")
        about = json.loads(metadata["prunegpt_packed"])
        tensors = about["tensors"]
        digest = about["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _wrong(path, f"its header must be that of a packed model; it is not: {error!r}") from error
    if about.get("version") != VERSION:
        raise _wrong(path, f"its version must be {VERSION}, got {about.get('version')!r}; take the unpack.py beside it")
    if not isinstance(tensors, dict) or not isinstance(digest, str):
        raise _wrong(path, "its tensors must be listed by name, with a SHA-256")
    data = blob[8 + length :]
    parts: Parts = {}
    ranges = []
    for name, item in header.items():
        begin, end = _range(path, name, item, data.size)
        ranges.append((begin, end, name))
        parts[name] = data[begin:end]
    at = 0
    for begin, end, name in sorted(ranges):
        if begin != at:
            raise _wrong(path, f"its parts must follow each other; {name} begins at {begin:,} and not at {at:,}")
        at = end
    if at != data.size:
        raise _wrong(path, f"it must end with its last part; {data.size - at:,} bytes follow")
    wanted = {part for name, entry in tensors.items() for part in _parts(path, name, entry)}
    if wanted != set(parts):
        odd = sorted(wanted ^ set(parts))[0]
        raise _wrong(path, f"it must hold the parts of its tensors and no others; {odd} is missing or left over")
    for name, entry in tensors.items():
        _check(path, name, entry, parts)
    return about, parts


def _range(path: Path, name: str, item: Any, size: int) -> tuple[int, int]:
    """Where a part is in the data."""
    try:
        (begin, end), shape, dtype = item["data_offsets"], item["shape"], item["dtype"]
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(path, f"part {name} must have a place, a shape and a dtype: {error!r}") from error
    if dtype != "U8":
        raise _wrong(path, f"part {name} must be bytes (U8), got {dtype}")
    if not all(_is_count(one) for one in (begin, end)) or not begin <= end <= size:
        raise _wrong(path, f"part {name} must be within the file, got {begin} to {end} of {size:,} bytes")
    if shape != [end - begin]:
        raise _wrong(path, f"part {name} must have the shape of its bytes, got {shape} for {end - begin:,}")
    return begin, end


def _parts(path: Path, name: str, entry: Any) -> list[str]:
    """The names of the parts of a tensor."""
    if not isinstance(entry, dict) or entry.get("dtype") not in WIDTHS:
        kind = entry.get("dtype") if isinstance(entry, dict) else entry
        raise _wrong(path, f"the dtype of {name} must be one of {', '.join(WIDTHS)}, got {kind!r}")
    sparse = [f"{name}:bitmask"] if entry.get("sparse") else []
    return [*sparse, *([f"{name}:high", f"{name}:low"] if entry.get("deflated") else [f"{name}:values"])]


def _check(path: Path, name: str, entry: dict[str, Any], parts: Parts) -> None:
    """Whether the sizes of a tensor's parts are those of its shape and count."""
    shape: Any = entry.get("shape")
    count: Any = entry.get("count")
    if not isinstance(shape, list) or not all(_is_count(side) for side in shape):
        raise _wrong(path, f"the shape of {name} must be a list of counts, got {shape!r}")
    total, width = math.prod(shape), WIDTHS[entry["dtype"]]
    if not _is_count(count) or count > total or (not entry.get("sparse") and count != total):
        raise _wrong(path, f"the count of {name} must be that of its {total:,} weights at most, got {count!r}")
    if entry.get("sparse") and parts[f"{name}:bitmask"].size != (total + 7) // 8:
        raise _wrong(path, f"the bitmask of {name} must have a bit for each of its {total:,} weights; it has not")
    part, expected = (
        (f"{name}:low", count * (width - 1)) if entry.get("deflated") else (f"{name}:values", count * width)
    )
    if parts[part].size != expected:
        raise _wrong(path, f"the values of {name} must have {expected:,} bytes, got {parts[part].size:,}")


def _tensor(path: Path, name: str, entry: dict[str, Any], parts: Parts) -> torch.Tensor:
    """A tensor whole."""
    total, count, width = math.prod(entry["shape"]), entry["count"], WIDTHS[entry["dtype"]]
    if entry.get("deflated"):
        values = np.empty((count, width), dtype=np.uint8)
        values[:, width - 1] = _inflated(path, name, parts[f"{name}:high"], count)
        values[:, : width - 1] = parts[f"{name}:low"].reshape(count, width - 1)
    else:
        values = np.array(parts[f"{name}:values"])
    values = values.reshape(-1).view(f"<u{width}")  # [count]
    if entry.get("sparse"):
        kept = np.unpackbits(parts[f"{name}:bitmask"], bitorder="little")  # [total, padded to whole bytes]
        if kept[total:].any() or int(np.count_nonzero(kept)) != count:
            raise _wrong(path, f"the bitmask of {name} must have {count:,} bits that are set; it has others")
        whole = np.zeros(total, dtype=values.dtype)
        whole[kept[:total].view(bool)] = values
        values = whole
    signed = torch.from_numpy(values.view(f"<i{width}"))
    return signed.view(getattr(torch, entry["dtype"])).reshape(entry["shape"])


def _inflated(path: Path, name: str, packed: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """The upper bytes of values; no more than `count` are ever made."""
    try:
        engine = zlib.decompressobj()
        found = engine.decompress(packed.tobytes(), count + 1)
    except zlib.error as error:
        raise _wrong(path, f"the upper bytes of {name} must be deflated: {error}") from error
    if len(found) != count or not engine.eof:
        raise _wrong(path, f"the upper bytes of {name} must be {count:,}; they are not")
    return np.frombuffer(found, dtype=np.uint8)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _wrong(path: Path, what: str) -> PackedError:
    return PackedError(f"packed weights {path} cannot be read: {what}. Copy or download the file again.")


def unpack(folder: str | Path, out: str | Path) -> None:
    """Writes an ordinary transformers folder from a packed one."""
    from safetensors.torch import save_file

    tensors = load(folder)
    Path(out).mkdir(parents=True)
    for file in Path(folder).iterdir():
        if file.is_file() and file.name not in (FILE, Path(__file__).name):
            shutil.copy2(file, out)
    save_file(tensors, Path(out) / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python unpack.py FOLDER OUT")
    try:
        unpack(sys.argv[1], sys.argv[2])
    except (PackedError, OSError) as error:
        sys.exit(f"error: {error}")
