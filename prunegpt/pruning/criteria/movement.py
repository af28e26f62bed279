"""Movement: weights that training pushes away from zero are kept."""

import torch
from torch import Tensor

from prunegpt.pruning.criteria.base import builtin


def movement_increment(weight: Tensor, gradient: Tensor) -> Tensor:
    """What one optimizer step adds to the movement of a weight: -W · ∂L/∂W.

    Args:
        weight: [out, in], before the optimizer step.
        gradient: [out, in], of the loss at that weight.

    Returns:
        float32 [out, in].
    """
    return -(weight.detach().float() * gradient.detach().float())


def movement(weight: Tensor, *, movement: Tensor) -> Tensor:
    """S = -Σ_t W^(t) · ∂L/∂W^(t) (Sanh et al. 2020, "Movement Pruning", eq. 5; the constant learning rate is left out).

    A weight that the gradient step shrinks has W · ∂L/∂W > 0 and loses score. The paper keeps scores of pruned weights
    moving by a straight-through estimator; here pruned weights are zero, so that their score does not change.

    Args:
        weight: [out, in]; only its device counts.
        movement: [out, in], the sum of :func:`movement_increment` over the optimizer steps so far.

    Returns:
        Scores, float32 [out, in].
    """
    return movement.detach().to(device=weight.device, dtype=torch.float32, copy=True)


MOVEMENT = builtin("movement", movement)
