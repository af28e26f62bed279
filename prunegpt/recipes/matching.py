"""What SparseML matches differently: keywords by version, and expressions that match the beginning of a name."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prunegpt.errors import PruneGPTError
from prunegpt.spec.names import Matrix, block_index, select_names

ALL = "__ALL__"
ALL_PRUNABLE = "__ALL_PRUNABLE__"

_CONVOLUTIONS = frozenset({"Conv1d", "Conv2d", "Conv3d"})
# Versions of SparseML -> the classes whose weights `__ALL_PRUNABLE__` means there.
PRUNABLE: Mapping[str, frozenset[str]] = {
    "0.6-0.9": _CONVOLUTIONS | {"Linear"},
    "0.10-1.2": _CONVOLUTIONS | {"Linear", "QATLinear", "QATConv2d"},
    "1.3-1.8": _CONVOLUTIONS | {"Linear", "QATLinear", "QATConv2d", "Conv1D"},
    "1.9": _CONVOLUTIONS | {"Linear", "QATLinear", "QATConv2d", "Conv1D", "Embedding"},
}

_CONV1D_MODELS = {"gpt2", "openai-gpt", "decision_transformer"}
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
_EMBEDDING = re.compile(r"(^|\.)(wte|wpe|tokens_embed|positions_embed|embed_\w+|\w*embeddings?|embed_in)\.weight$")
_VOCABULARY = re.compile(r"(^|\.)(wte|tokens_embed|embed_tokens|word_embeddings|embed_in)\.weight$")
_NORM = re.compile(r"(^|[._])(ln|norm|layernorm)(_\w+)?\.(weight|bias)$", re.IGNORECASE)


class TensorInfo(NamedTuple):
    """A parameter of a model.

    Attributes:
        shape: as stored.
        module_type: class of the module it belongs to: `Linear`, `Conv1D` (GPT-2's), `Embedding`, `LayerNorm`, ...
    """

    shape: tuple[int, ...]
    module_type: str


Tensors = Mapping[str, TensorInfo]


class MatchingError(PruneGPTError, ValueError):
    """An entry that is no regular expression, or a version that is none."""


def block_matrices(tensors: Tensors) -> tuple[str, ...]:
    """The weight matrices inside decoder layers: what `__ALL_PRUNABLE__` and `__ALL__` are taken for here."""
    return tuple(
        name
        for name, (shape, module_type) in tensors.items()
        if name.endswith(".weight")
        and len(shape) == 2
        and module_type in {"Linear", "Conv1D"}
        and block_index(name) is not None
    )


def prunable(tensors: Tensors, version: str) -> tuple[str, ...]:
    """What `__ALL_PRUNABLE__` matched in a version of SparseML.

    Args:
        tensors: with the output layer of tied embeddings under its own name, as SparseML walked modules.
        version: a key of :data:`PRUNABLE`.
    """
    classes = PRUNABLE[version]
    return tuple(name for name, info in tensors.items() if name.endswith(".weight") and info.module_type in classes)


def as_in(version: str, entries: Sequence[str], tensors: Tensors) -> tuple[str, ...]:
    """Entries of `params` (legacy dialect) with the keywords replaced by what they meant in a version of SparseML."""
    meant = {ALL: tuple(tensors), ALL_PRUNABLE: prunable(tensors, version)}
    return tuple(dict.fromkeys(name for entry in entries for name in meant.get(entry, (entry,))))


def selected(target: str | None, tensors: Tensors) -> tuple[str, ...]:
    """The matrices that a pattern of a spec's `targets` means; None = those inside the decoder layers."""
    blocks = set(block_matrices(tensors))
    matrices = [
        Matrix(name, block_index(name) if name in blocks else None, (info.shape[0], info.shape[1]))
        for name, info in tensors.items()
        if len(info.shape) == 2
    ]
    return tuple(select_names(matrices, targets=() if target is None else (target,))[0])


def is_class(entry: str) -> bool:
    """Whether an entry of `targets` names a class of modules, such as `Linear`."""
    return re.fullmatch(r"[A-Z]\w*", entry) is not None


def as_target(entry: str, *, modules: bool) -> str | None:
    """An entry as a pattern of a spec's `targets`, which must match whole names; None = all decoder weight matrices.

    Args:
        entry: of `params`, or of `targets` where `modules`.
        modules: whether entries name modules, whose parameters are meant.

    Raises:
        MatchingError: `re:` with something that is no regular expression.
    """
    if entry in {ALL, ALL_PRUNABLE} or (modules and is_class(entry)):
        return None
    if not entry.startswith("re:"):
        return f"re:{re.escape(entry)}(?:\\..*)?" if modules else entry
    pattern = entry.removeprefix("re:")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise MatchingError(f"re: must be followed by a regular expression, but got {entry!r}: {error}.") from error
    flags = match[0] if (match := re.match(r"\(\?[aiLmsux]+\)", pattern)) else ""
    pattern = pattern.removeprefix(flags)
    ends = pattern.endswith("$") and not pattern.endswith("\\$")
    if "|" not in re.sub(r"\([^()]*\)", "", pattern) and pattern.removesuffix("$").endswith((".weight", ".*")):
        return f"re:{flags}{pattern.removesuffix('$')}"  # the whole name already
    if ends:  # a parameter's name must end here, and not its module's
        return f"re:{flags}(?:{pattern[:-1]})" + (r"(?:\..*)?" if modules else r"(?<=\.weight)")
    return f"re:{flags}(?:{pattern}).*"


def versions_differ(tensors: Tensors) -> Mapping[str, Sequence[str]]:
    """Version -> what `__ALL_PRUNABLE__` matched there, where that is not the weight matrices of the decoder layers."""
    here = set(block_matrices(tensors))
    return {version: names for version in PRUNABLE if set(names := prunable(tensors, version)) != here}


def with_classes(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The parameters of a model, with the class of the module that each belongs to, inferred from names and shapes.

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
