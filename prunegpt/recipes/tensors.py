"""Names, shapes and module classes of a model's parameters, read from a folder without torch."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunegpt.errors import ModelError
from prunegpt.recipes.matching import TensorInfo

_MAX_HEADER = 100_000_000  # bytes
_CONV1D_MODELS = {"gpt2", "openai-gpt", "decision_transformer"}
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
_EMBEDDING = re.compile(r"(^|\.)(wte|wpe|tokens_embed|positions_embed|embed_\w+|\w*embeddings?|embed_in)\.weight$")
_NORM = re.compile(r"(^|[._])(ln|norm|layernorm)(_\w+)?\.(weight|bias)$", re.IGNORECASE)


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """The parameters of a transformers folder, from the headers of its safetensors files and its config.

    Module classes are told from names and shapes. The output layer of tied embeddings is listed under its own name.

    Raises:
        ModelError: the folder has no safetensors file, or one that is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"a model must be a folder with *.safetensors, but {folder} has none.")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes.update(_header(file))
    config = _config(folder / "config.json")
    if config.get("model_type") == "gpt2" and not any(name.startswith("transformer.") for name in shapes):
        shapes = {f"transformer.{name}" if name != "lm_head.weight" else name: shape for name, shape in shapes.items()}
    conv1d = config.get("model_type") in _CONV1D_MODELS
    found = {name: TensorInfo(shape, _module_type(name, shape, conv1d=conv1d)) for name, shape in shapes.items()}
    vocabularies = [info for name, info in found.items() if _is_vocabulary(name)]
    if (
        vocabularies
        and not {"lm_head.weight", "embed_out.weight"} & set(found)
        and config.get("tie_word_embeddings", True)
    ):
        found["lm_head.weight"] = TensorInfo(vocabularies[0].shape, "Linear")
    return found


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _MAX_HEADER:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(stream.read(length))
        return {
            name: tuple(int(side) for side in entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} must be a safetensors file, but cannot be read: {error}.") from error


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _module_type(name: str, shape: tuple[int, ...], *, conv1d: bool) -> str:
    if _NORM.search(name):
        return "LayerNorm"
    if _EMBEDDING.search(name):
        return "Embedding"
    if conv1d and _CONV1D.search(name.replace(".bias", ".weight")):
        return "Conv1D"
    return "Linear" if len(shape) == 2 or name.endswith(".bias") else "Module"


def _is_vocabulary(name: str) -> bool:
    return re.search(r"(^|\.)(wte|tokens_embed|embed_tokens|word_embeddings|embed_in)\.weight$", name) is not None
