"""Module classes of a model's parameters, told without torch."""

import re
from collections.abc import Mapping
from typing import Any

from prunegpt.recipes.matching import TensorInfo

_CONV1D_MODELS = {"gpt2", "openai-gpt", "decision_transformer"}
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
_EMBEDDING = re.compile(r"(^|\.)(wte|wpe|tokens_embed|positions_embed|embed_\w+|\w*embeddings?|embed_in)\.weight$")
_VOCABULARY = re.compile(r"(^|\.)(wte|tokens_embed|embed_tokens|word_embeddings|embed_in)\.weight$")
_NORM = re.compile(r"(^|[._])(ln|norm|layernorm)(_\w+)?\.(weight|bias)$", re.IGNORECASE)


def with_classes(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The parameters of a model, with the class of the module that each belongs to, told from names and shapes.

    The output layer of tied embeddings is listed under its own name.

    Args:
        shapes: of the stored tensors.
        config: the model's config.json.
    """
    kind = config.get("model_type")
    if kind == "gpt2" and not any(name.startswith("transformer.") for name in shapes):
        shapes = {name if name == "lm_head.weight" else f"transformer.{name}": shape for name, shape in shapes.items()}
    conv1d = kind in _CONV1D_MODELS
    found = {name: TensorInfo(shape, _module_type(name, shape, conv1d=conv1d)) for name, shape in shapes.items()}
    vocabulary = next((info for name, info in found.items() if _VOCABULARY.search(name)), None)
    if (
        vocabulary
        and not {"lm_head.weight", "embed_out.weight"} & set(found)
        and config.get("tie_word_embeddings", True)
    ):
        found["lm_head.weight"] = TensorInfo(vocabulary.shape, "Linear")
    return found


def _module_type(name: str, shape: tuple[int, ...], *, conv1d: bool) -> str:
    if _NORM.search(name):
        return "LayerNorm"
    if _EMBEDDING.search(name):
        return "Embedding"
    if conv1d and _CONV1D.search(name.replace(".bias", ".weight")):
        return "Conv1D"
    return "Linear" if len(shape) == 2 or name.endswith(".bias") else "Module"
