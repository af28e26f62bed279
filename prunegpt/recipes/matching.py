"""Which tensors an entry of `params` or `targets` means, in SparseML's versions and here."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prunegpt.errors import PruneGPTError
from prunegpt.spec.names import block_index

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
    """The weight matrices inside decoder blocks: what `__ALL_PRUNABLE__` and `__ALL__` are taken for here."""
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

    Raises:
        MatchingError: no such version.
    """
    if version not in PRUNABLE:
        raise MatchingError(f"a version must be one of {', '.join(PRUNABLE)}, but got {version!r}.")
    classes = PRUNABLE[version]
    return tuple(name for name, info in tensors.items() if name.endswith(".weight") and info.module_type in classes)


def match_params(entry: str, tensors: Tensors, version: str | None = None) -> tuple[str, ...]:
    """The parameters that an entry of `params` means (legacy dialect).

    Args:
        entry: an exact name, `re:` and an expression that the *beginning* of a name must match, or a keyword.
        tensors: the model's parameters.
        version: of SparseML, for what the keywords meant there; None for what they are taken for here.

    Raises:
        MatchingError: `re:` with something that is no regular expression.
    """
    if entry in {ALL, ALL_PRUNABLE}:
        if version is None:
            return block_matrices(tensors)
        return tuple(tensors) if entry == ALL else prunable(tensors, version)
    if entry.startswith("re:"):
        compiled = compiled_entry(entry)
        return tuple(name for name in tensors if compiled.match(name))
    return (entry,) if entry in tensors else ()


def match_targets(entry: str, tensors: Tensors) -> tuple[str, ...]:
    """The parameters that an entry of `targets` means (session dialect): those of the modules it names.

    Args:
        entry: a module's name, `re:` and an expression for the beginning of one, a class such as `Linear`, a keyword,
            or a parameter's name.
        tensors: the model's parameters.

    Raises:
        MatchingError: `re:` with something that is no regular expression.
    """
    matrices = block_matrices(tensors)
    if entry in {ALL, ALL_PRUNABLE}:
        return matrices
    if is_class(entry):
        return tuple(name for name in matrices if tensors[name].module_type == entry)
    if entry.startswith("re:"):
        compiled = compiled_entry(entry)
        return tuple(name for name in matrices if any(compiled.match(owner) for owner in _owners(name)))
    return tuple(name for name in matrices if entry in _owners(name))


def _owners(name: str) -> list[str]:
    """A parameter's name and those of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def is_class(entry: str) -> bool:
    """Whether an entry of `targets` names a class of modules, such as `Linear`."""
    return re.fullmatch(r"[A-Z]\w*", entry) is not None


def compiled_entry(entry: str) -> re.Pattern[str]:
    """The expression of a `re:` entry.

    Raises:
        MatchingError: it is none.
    """
    try:
        return re.compile(entry.removeprefix("re:"))
    except (re.error, RecursionError, OverflowError) as error:
        raise MatchingError(f"re: must be followed by a regular expression, but got {entry!r}: {error}.") from error


def as_target(entry: str, *, modules: bool) -> str | None:
    """An entry as a pattern of a spec's `targets`, which must match whole names; None = all block matrices.

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
    compiled_entry(entry)
    pattern = entry.removeprefix("re:")
    flags = match[0] if (match := re.match(r"\(\?[aiLmsux]+\)", pattern)) else ""
    pattern = pattern.removeprefix(flags)
    ends = pattern.endswith("$") and not pattern.endswith("\\$")
    if "|" not in re.sub(r"\([^()]*\)", "", pattern) and pattern.removesuffix("$").endswith((".weight", ".*")):
        return f"re:{flags}{pattern.removesuffix('$')}"  # the whole name already
    if ends:  # a parameter's name must end here, and not its module's
        return f"re:{flags}(?:{pattern[:-1]})" + (r"(?:\..*)?" if modules else r"(?<=\.weight)")
    return f"re:{flags}(?:{pattern}).*"


def versions_differ(tensors: Tensors) -> Mapping[str, Sequence[str]]:
    """Version -> what `__ALL_PRUNABLE__` matched there, where that is not the block matrices."""
    here = set(block_matrices(tensors))
    return {version: names for version in PRUNABLE if set(names := prunable(tensors, version)) != here}
