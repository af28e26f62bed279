"""Least squares on a fixed mask: the best values that the kept weights of a layer can have."""

import torch
from torch import Tensor


def least_squares(
    weight: Tensor, *, original: Tensor, gram: Tensor, mask: Tensor, iterations: int = 100, tolerance: float = 1e-4
) -> Tensor:
    """The weight that minimises tr((W - original)·G·(W - original)ᵀ) among those that are zero outside the mask.

    Each row is a problem of its own, min over its support S, with the normal equations G_SS·w_S = (G·w_original)_S. All
    rows are solved together by conjugate gradients with the diagonal as preconditioner, whose residuals and directions
    are cut to the mask (Meng et al. 2024, "ALPS", arXiv 2406.07831, algorithm 2; here with step lengths for each row).

    Args:
        weight: [out, in], where to start; only the kept weights count.
        original: [out, in], the layer that is approached.
        gram: [in, in], symmetric and positive definite on the support.
        mask: bool [out, in], True = kept.
        iterations: maximum number of steps.
        tolerance: stop when the residual's norm is this share of that of the right-hand side, over all rows.

    Returns:
        float32 or float64 [out, in], as `weight`.
    """
    support = mask.to(weight.dtype)  # [out, in]
    inverse = gram.diagonal().clamp(min=torch.finfo(gram.dtype).tiny).reciprocal()  # [in]
    solution = weight * support  # [out, in]
    target = (original @ gram) * support  # [out, in]
    residual = target - (solution @ gram) * support  # [out, in]
    direction = residual * inverse  # [out, in]
    energy = (residual * direction).sum(dim=1, keepdim=True)  # [out, 1]
    goal = float((target * target * inverse).sum()) * tolerance**2
    for _ in range(iterations):
        if float(energy.sum()) <= goal:
            break
        image = (direction @ gram).mul_(support)  # [out, in]
        curvature = (direction * image).sum(dim=1, keepdim=True)  # [out, 1]
        length = torch.where(curvature > 0, energy / curvature, 0)  # [out, 1]
        solution.addcmul_(direction, length)
        residual.addcmul_(image, length, value=-1)
        scaled = residual * inverse  # [out, in]
        following = (residual * scaled).sum(dim=1, keepdim=True)  # [out, 1]
        direction = scaled.addcmul_(direction, torch.where(energy > 0, following / energy, 0))
        energy = following
    return solution
