"""Explicit: sparsities written down, by name or pattern."""

from collections.abc import Mapping

from prunegpt.errors import PruningError
from prunegpt.pruning.threshold import zeros_for
from prunegpt.spec.names import first_matches


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
    for wanted in (sparsity, *sparsities.values()):
        zeros_for(0, wanted)
    decided, problems = first_matches(list(sizes), list(sparsities))
    if problems:
        raise PruningError(" ".join(problems))
    return {name: sparsities[decided[name]] if name in decided else sparsity for name in sizes}
