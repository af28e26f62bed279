"""Taylor: the loss that removing a weight costs, by a second-order expansion with a diagonal Fisher matrix."""

from torch import Tensor

from prunegpt.pruning.criteria.base import builtin


def taylor(weight: Tensor, *, squared_gradient: Tensor) -> Tensor:
    """S = ½ · E[g²] · W²: the expected increase of the loss when a weight is set to zero.

    The expansion is L(W - w e) - L(W) ≈ -g·w + ½·H·w². At a minimum g vanishes in the mean, and the Hessian's diagonal
    is estimated by that of the empirical Fisher matrix, E[g²] (LeCun et al. 1989, "Optimal Brain Damage", eq. 3, with
    the Fisher diagonal as in Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", eq.
    6).

    Args:
        weight: [out, in].
        squared_gradient: [out, in], mean over batches of the squared gradient of the loss.

    Returns:
        Scores in nats (the unit of the loss), float32 [out, in].
    """
    return 0.5 * squared_gradient.detach().to(weight.device).float() * weight.detach().float().square()


TAYLOR = builtin("taylor", taylor)
