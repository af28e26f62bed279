"""Magnitude: the smallest weights go first."""

from torch import Tensor

from prunegpt.pruning.criteria.base import builtin


def magnitude(weight: Tensor) -> Tensor:
    """S = |W| (Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", section 3).

    Args:
        weight: [out, in].

    Returns:
        Scores, float32 [out, in].
    """
    return weight.detach().float().abs()


MAGNITUDE = builtin("magnitude", magnitude)
