"""Uniform: every tensor is pruned alike."""

from collections.abc import Mapping

from prunegpt.pruning.threshold import zeros_for


def uniform(sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """The same sparsity for every tensor.

    Args:
        sizes: name -> number of weights.
        sparsity: between 0 and 1.

    Raises:
        PruningError: the sparsity is not between 0 and 1.
    """
    zeros_for(0, sparsity)
    return dict.fromkeys(sizes, sparsity)
