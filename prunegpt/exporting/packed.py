"""A folder whose weights are stored without their zeros: a bitmask and the values, bit for bit.

What reads it is `lm/unpack.py`, which is written beside the weights and needs nothing of PruneGPT.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from prunegpt.exporting import folder as dense
from prunegpt.exporting.base import Export, ExportCheck, ExportFormat
from prunegpt.lm import unpack
from prunegpt.planning.sources import PACKED, weight_files


def write(export: Export, folder: Path) -> None:
    """Writes an ordinary folder and puts packed weights in the place of its own."""
    dense.write(export, folder)
    tensors: dict[str, Tensor] = {}
    files = weight_files(folder)
    for file in files:
        with safe_open(file, framework="pt") as stored:
            tensors |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    pack(tensors, folder / PACKED)
    for file in (*files, folder / "model.safetensors.index.json"):
        file.unlink(missing_ok=True)
    shutil.copy(unpack.__file__, folder / "unpack.py")


def pack(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors of floating point to a packed file, each in the smallest of four ways."""
    parts: dict[str, NDArray[np.uint8]] = {}
    listed: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        entry, found = _packed(tensor)
        listed[name] = entry
        parts |= {f"{name}:{part}": content for part, content in found.items()}
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(name.encode())
        digest.update(parts[name].data)
    about = {"version": unpack.VERSION, "tensors": listed, "sha256": digest.hexdigest()}
    save_file(parts, path, metadata={"prunegpt_packed": json.dumps(about)})


def _packed(tensor: Tensor) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
    """What is listed of a tensor, and its parts as bytes. A zero is one whose bits are all 0: -0 is a value."""
    width = tensor.element_size()
    bits = tensor.contiguous().view({2: torch.int16, 4: torch.int32}[width]).numpy().reshape(-1)  # [total]
    kept = bits != 0
    count = int(np.count_nonzero(kept))
    sparse = (bits.size + 7) // 8 + count * width < bits.size * width
    parts = {"bitmask": np.packbits(kept, bitorder="little")} if sparse else {}
    values = np.ascontiguousarray(bits[kept] if sparse else bits).view(np.uint8).reshape(-1, width)  # [count, width]
    engine = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    high = engine.compress(values[:, -1].tobytes()) + engine.flush()
    deflated = len(high) < len(values)
    if deflated:
        parts |= {"high": np.frombuffer(high, np.uint8), "low": np.ascontiguousarray(values[:, :-1]).reshape(-1)}
    else:
        parts |= {"values": values.reshape(-1)}
    dtype = str(tensor.dtype).removeprefix("torch.")
    entry = {"shape": list(tensor.shape), "dtype": dtype, "count": len(values), "sparse": sparse, "deflated": deflated}
    return entry, parts


def check(export: Export, folder: Path) -> list[ExportCheck]:
    """As of an ordinary folder, which it is unpacked to; and how its size compares."""
    found = dense.check(export, folder)
    about, _ = unpack.read(folder / PACKED)
    whole = sum(int(np.prod(entry["shape"])) * unpack.WIDTHS[entry["dtype"]] for entry in about["tensors"].values())
    share = (folder / PACKED).stat().st_size / whole
    gained = "" if share < 1 else "; nothing is gained: too few weights are zero for this dtype, take --to folder"
    return [*found, ExportCheck("size", False, None, f"{share:.1%} of the same weights with their zeros{gained}")]


PACKED_FOLDER = ExportFormat(
    "packed", ("auto", "float32", "bfloat16", "float16"), "", lambda export: None, write, check
)
