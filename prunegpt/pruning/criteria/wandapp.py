"""Wanda++: Wanda's score with the gradient of the decoder layer's output, compared within an output row."""

from torch import Tensor

from prunegpt.pruning.criteria.base import builtin


def wandapp(weight: Tensor, *, input_norm: Tensor, regional_gradient: Tensor, alpha: float = 100.0) -> Tensor:
    """S_ij = (α·G_ij + ||X_j||_2) · |W_ij| (Yang et al. 2025, "Wanda++: Pruning Large Language Models via Regional
    Gradients", arXiv 2503.04992, section 4.1; without the regional optimization, for which there is `repair`).

    G_ij is the root of the mean over windows of (∂||f(x_n)||_2 / ∂W_ij)², where f is the decoder layer and x_n what
    window n gives it. What α weighs depends on the scale of ||X_j||_2, and the paper's code is not public. Here it is
    the root of the mean over windows of the squared norm within a window, as in the code of Wanda, so that neither part
    grows with the number of windows. Both arguments are sums over windows: the score is sqrt(windows) times that of the
    formula, a factor that all layers share and that changes no mask. An unofficial reproduction takes ||X_j||_2 over
    all windows instead, which is the same as a smaller α: 100 / sqrt(windows).

    Args:
        weight: [out, in].
        input_norm: [in], the Euclidean norm of each input feature over the calibration tokens.
        regional_gradient: [out, in], sqrt(Σ_n (∂||f(x_n)||_2 / ∂W_ij)²).
        alpha: α, how much the gradient counts; 0 = Wanda.

    Returns:
        Scores, float32 [out, in].
    """
    gradient = alpha * regional_gradient.to(weight.device).float()  # [out, in]
    return (gradient + input_norm.to(weight.device).float()) * weight.detach().float().abs()  # [out, in]


WANDAPP = builtin("wanda++", wandapp)
