"""Wanda: weights by activations, compared within an output row."""

from torch import Tensor

from prunegpt.pruning.criteria.base import builtin


def wanda(weight: Tensor, *, input_norm: Tensor) -> Tensor:
    """S_ij = |W_ij| · ||X_j||_2 (Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models",
    eq. 1).

    The norm may be of the mean over tokens instead of the sum: a common factor changes no mask within a tensor, but it
    would between tensors, so one run uses one of the two throughout.

    Args:
        weight: [out, in].
        input_norm: [in], the Euclidean norm of each input feature over the calibration tokens.

    Returns:
        Scores, float32 [out, in].
    """
    return weight.detach().float().abs() * input_norm.to(weight.device).float()  # [out, in]


WANDA = builtin("wanda", wanda)
