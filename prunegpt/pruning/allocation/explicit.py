"""Explicit: sparsities written down, by name or pattern."""

from collections.abc import Mapping

from prunegpt.errors import PruningError, nearest
from prunegpt.pruning.threshold import zeros_for
from prunegpt.spec.names import matches

_LISTED = 5  # nearest names shown in one message


def explicit(sizes: Mapping[str, int], sparsity: float, *, sparsities: Mapping[str, float]) -> dict[str, float]:
    """The sparsity that the first matching pattern gives each tensor.

    A tensor takes the first pattern that matches it, so that exceptions are written before rules; no tensor is counted
    twice. A pattern whose tensors were all taken by earlier ones is an error, as one that matches nothing is.

    Args:
        sizes: parameter name -> number of weights.
        sparsity: of the tensors that no pattern matches.
        sparsities: pattern -> sparsity. A pattern is a parameter name, a module name (without `.weight`), a glob, or
            `re:` and a regular expression that must match a whole name of either kind.

    Raises:
        PruningError: a pattern matches nothing, nothing new, or is no regular expression; or a sparsity is not between
            0 and 1.
    """
    allotted: dict[str, float] = {}
    for pattern, wanted in sparsities.items():
        zeros_for(0, wanted)
        hits = [name for name in sizes if matches(name, pattern)]
        if not hits:
            modules = [name.removesuffix(".weight") for name in sizes]
            raise PruningError(
                f"every name in the sparsities must match a pruned tensor, but {pattern!r} matches none. "
                f"Nearest names: {', '.join(nearest(pattern.removeprefix('re:'), modules)[:_LISTED])}."
            )
        fresh = [name for name in hits if name not in allotted]
        if not fresh:
            raise PruningError(
                f"the first name that matches a tensor decides its sparsity, so {pattern!r} decides nothing: all its "
                f"{len(hits)} tensors match an earlier one. Move it before the wider ones, or take it out."
            )
        allotted.update(dict.fromkeys(fresh, wanted))
    zeros_for(0, sparsity)
    return {name: allotted.get(name, sparsity) for name in sizes}
