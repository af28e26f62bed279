"""What SparseML and llm-compressor match differently: keywords by version, and the beginning of a name."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prunegpt.errors import PruneGPTError
from prunegpt.spec.names import Matrix

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


class ModelNames(NamedTuple):
    """What a recipe can match in a model.

    Attributes:
        matrices: what a run selects among.
        classes: parameter -> class of its module (`Linear`, GPT-2's `Conv1D`, `Embedding`), tied ones under each name.
    """

    matrices: Sequence[Matrix]
    classes: Mapping[str, str]

    @property
    def blocks(self) -> tuple[str, ...]:
        """The weight matrices inside decoder layers: what the keywords and names of classes are taken for here."""
        return tuple(matrix.name for matrix in self.matrices if matrix.block is not None and matrix.default)


class MatchingError(PruneGPTError, ValueError):
    """An entry that is no regular expression, or a version that is none."""


def version_of(text: str) -> str:
    """The key of :data:`PRUNABLE` that a version of SparseML belongs to: 0.9 to 0.6-0.9.

    Raises:
        MatchingError: it is no version, or none that is known.
    """
    if text in PRUNABLE:
        return text
    if re.fullmatch(r"\d+\.\d+(\.\d+)*", text):
        for name in PRUNABLE:
            first, _, last = name.partition("-")
            if _release(first) <= _release(text) <= _release(last or first):
                return name
    raise MatchingError(f"a version of SparseML must be one of {', '.join(PRUNABLE)}, got {text!r}.")


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def prunable(classes: Mapping[str, str], version: str) -> tuple[str, ...]:
    """What `__ALL_PRUNABLE__` matched in a version of SparseML, a key of :data:`PRUNABLE`."""
    return tuple(name for name, kind in classes.items() if name.endswith(".weight") and kind in PRUNABLE[version])


def as_in(version: str, entries: Sequence[str], classes: Mapping[str, str]) -> tuple[str, ...]:
    """Entries with the keywords replaced by what they matched in a version of SparseML."""
    found = {ALL: tuple(classes), ALL_PRUNABLE: prunable(classes, version)}
    return tuple(dict.fromkeys(name for entry in entries for name in found.get(entry, (entry,))))


def versions_differ(model: ModelNames) -> Mapping[str, Sequence[str]]:
    """Version -> what `__ALL_PRUNABLE__` matched there, where that is not the weight matrices of the decoder layers."""
    here = set(model.blocks)
    return {version: names for version in PRUNABLE if set(names := prunable(model.classes, version)) != here}


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
    flags, pattern = _expression(entry)
    ends = pattern.endswith("$") and not pattern.endswith("\\$")
    if "|" not in re.sub(r"\([^()]*\)", "", pattern) and pattern.removesuffix("$").endswith((".weight", ".*")):
        return f"re:{flags}{pattern.removesuffix('$')}"  # the whole name already
    if ends:  # a parameter's name must end here, and not its module's
        return f"re:{flags}(?:{pattern[:-1]})" + (r"(?:\..*)?" if modules else r"(?<=\.weight)")
    return f"re:{flags}(?:{pattern}).*"


def as_exclusion(entry: str) -> str:
    """An entry of `ignore` as a pattern of a spec's `exclude`.

    llm-compressor compares it with the name of each layer alone: an exact one, or an expression at its beginning.

    Raises:
        MatchingError: `re:` with something that is no regular expression.
    """
    if not entry.startswith("re:"):
        return entry
    flags, pattern = _expression(entry)
    whole = pattern.endswith(".*") and not pattern.endswith("\\.*") and "|" not in pattern
    return f"re:{flags}{pattern}" if whole else f"re:{flags}(?:{pattern}).*"


def _expression(entry: str) -> tuple[str, str]:
    """The flags at the beginning of a `re:` entry, and what follows them."""
    pattern = entry.removeprefix("re:")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise MatchingError(f"re: must be followed by a regular expression, got {entry!r}: {error}.") from error
    flags = match[0] if (match := re.match(r"\(\?[aiLmsux]+\)", pattern)) else ""
    return flags, pattern.removeprefix(flags)
