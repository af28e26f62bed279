"""Names and shapes of stored tensors, read from safetensors headers. No torch, and no weight is read."""

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path

from prunegpt.errors import ModelError

INDEX = "model.safetensors.index.json"
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_AGAIN = "Copy or download it again."


def tensor_shapes(folder: Path, files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name of a folder's safetensors files.

    Raises:
        ModelError: a file is cut or damaged, or one that the index names is missing.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= _header(file)
    index = folder / INDEX
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{INDEX} must be JSON with a weight_map, but {index} is not: {error!r}. {_AGAIN}"
            ) from error
        missing = sorted(str(name) for name in named if name not in {file.name for file in files})
        if missing:
            raise ModelError(f"a model folder must hold all its weights, but {folder} lacks {missing[0]}. {_AGAIN}")
    return shapes


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """The eight bytes of length, then JSON, then the data whose end the JSON tells."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("its header is cut")
            header = json.loads(file.read(length))
        tensors = {name: item for name, item in header.items() if name != "__metadata__"}
        end = max((int(item["data_offsets"][1]) for item in tensors.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"it should have {8 + length + end} bytes but has {size}")
        for name, item in tensors.items():
            begin, stop = item["data_offsets"]
            if math.prod(item["shape"]) * _BYTES.get(item["dtype"], 0) not in (0, stop - begin):
                raise ValueError(f"{name} of shape {item['shape']} cannot have {stop - begin} bytes")
        return {name: tuple(int(side) for side in item["shape"]) for name, item in tensors.items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ModelError(f"weights must be whole safetensors files, but {path} is not: {error}. {_AGAIN}") from error
