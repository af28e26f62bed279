"""ADMM: let a layer and its pruned copy pull at one another until they agree, then solve for what was kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.pruning.patterns import Pattern
from prunegpt.pruning.solvers.base import Solution, builtin, reconstruction_error, target_zeros
from prunegpt.pruning.solvers.factor import LIMIT, damping_schedule, escalation_notes, normalise
from prunegpt.pruning.solvers.support import least_squares

_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # share of kept weights that changed -> factor of the penalty


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The damped Gram matrix, scaled to a unit diagonal, with its eigenvectors: H = S·(G/mean + damping·I)·S = V·Λ·Vᵀ.

    Attributes:
        matrix: H, float32 [in, in].
        scale: the square root of the unscaled diagonal, [in]; a weight times it is a weight of the scaled problem.
        values: Λ, float32 [in].
        vectors: V, float32 [in, in].
        dead: bool [in], inputs that were zero on every token.
        damping: what was added to the diagonal.
        notes: as in :class:`~prunegpt.pruning.solvers.factor.InverseFactor`.
    """

    matrix: Tensor
    scale: Tensor
    values: Tensor
    vectors: Tensor
    dead: Tensor
    damping: float
    notes: tuple[str, ...]


def spectrum(gram: Tensor, *, damping: float = 0.01) -> Spectrum:
    """The eigendecomposition that every ADMM step of a layer uses.

    Args:
        gram: [in, in].
        damping: what is added to the diagonal, as a share of its mean.

    Raises:
        PruningError: the Gram matrix is not finite, or not positive definite at any damping up to 1 in float64.
    """
    matrix, dead, notes = normalise(gram)
    for dtype, added in damping_schedule(damping):
        damped = matrix.to(dtype, copy=True)  # [in, in]
        damped.diagonal().add_(added)
        scale = damped.diagonal().sqrt()  # [in]
        damped /= scale.unsqueeze(1) * scale  # [in, in]
        try:
            values, vectors = torch.linalg.eigh(damped)  # [in], [in, in]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        # The Gram matrix adds nothing negative, so that no eigenvalue is below what the damping alone gives.
        floor = added / float(scale.max()) ** 2
        rounding = torch.finfo(dtype).eps * values.numel() * float(values[-1])
        lowest = float(values[0])
        if lowest > floor - rounding and (floor > 0 or lowest > rounding) and bool(torch.isfinite(vectors).all()):
            values = values.clamp(min=floor)
            notes = (*notes, *escalation_notes(damping, added, dtype))
            return Spectrum(damped.float(), scale.float(), values.float(), vectors.float(), dead, added, notes)
    raise PruningError(
        f"the Gram matrix must be positive definite; it is not at any damping from {damping:g} to {LIMIT:g}, in "
        "float64 either. Calibrate on more tokens."
    )


def admm(
    weight: Tensor,
    *,
    gram: Tensor,
    pattern: Pattern,
    sparsity: float | None = None,
    mask: Tensor | None = None,
    damping: float = 0.01,
    penalty: float = 0.1,
    iterations: int = 300,
    refine_iterations: int = 100,
    refine_tolerance: float = 1e-4,
    factor: Spectrum | None = None,
) -> Solution:
    """Meng et al. 2024, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
    arXiv 2406.07831, algorithm 1, with its scaling of the inputs to unit norm.

    The layer W is pulled towards the original in the norm of H, and its copy D is W cut to the pattern; the penalty ρ
    on their difference grows, faster while the mask still changes (equation 5 and section 3.2), until the mask is
    stable. Then the kept weights are solved for exactly (:func:`~prunegpt.pruning.solvers.support.least_squares`).

    Args:
        weight: [out, in].
        gram: XᵀX, [in, in].
        pattern: unstructured or N:M.
        sparsity: share of the weights that is zero afterwards; None = the one of the pattern.
        mask: [out, in], True = kept: what is pruned already stays pruned and counts. Its weights count as zero.
        damping: what is added to the diagonal of the Gram matrix, as a share of its mean.
        penalty: the first ρ, in units of the scaled Gram matrix, whose diagonal is one.
        iterations: ADMM steps at most.
        refine_iterations: steps at most of the conjugate gradients at the end.
        refine_tolerance: their relative residual.
        factor: :func:`spectrum` of the Gram matrix, where it is known.

    Raises:
        PruningError: the Gram matrix cannot be used, or sparsity, pattern and shape do not go together.
    """
    target, zeros = target_zeros("admm", weight, sparsity, pattern)
    factor = factor or spectrum(gram, damping=damping)
    start_weight = weight.detach().float()  # [out, in]
    if mask is not None:
        start_weight = start_weight * mask
    scaled = start_weight * factor.scale  # [out, in]
    worth = (~factor.dead).float()  # [in]

    def project(matrix: Tensor) -> Tensor:
        return pattern.select((matrix * worth).square_(), target, mask=mask)  # [out, in]

    pull = scaled @ factor.matrix  # [out, in]
    copy, dual = scaled.clone(), torch.zeros_like(scaled)  # [out, in], [out, in]
    kept = project(scaled)  # [out, in]
    settled = kept
    budget = weight.numel() - zeros
    rho = penalty
    inverse = _shifted_inverse(factor, rho)  # [in, in]
    for step in range(1, iterations + 1):
        layer = torch.add(pull, copy, alpha=rho).sub_(dual) @ inverse  # [out, in]
        torch.add(layer, dual, alpha=1 / rho, out=copy)
        kept = project(copy)
        copy.mul_(kept)
        dual.add_(layer.sub_(copy), alpha=rho)
        if step % 3 == 0:
            changed = int(torch.count_nonzero(kept != settled))
            if changed == 0:
                break
            settled = kept
            rho *= next(growth for share, growth in _GROWTH if changed >= share * budget)
            inverse = _shifted_inverse(factor, rho)  # [in, in]

    solved = least_squares(
        copy,
        original=scaled,
        gram=factor.matrix,
        mask=kept,
        iterations=refine_iterations,
        tolerance=refine_tolerance,
    )
    solved = solved / factor.scale  # [out, in]
    return Solution(solved, kept, reconstruction_error(solved, start_weight, gram), factor.damping, factor.notes)


def _shifted_inverse(factor: Spectrum, rho: float) -> Tensor:
    """(H + ρ·I)⁻¹, [in, in]."""
    return (factor.vectors / (factor.values + rho)) @ factor.vectors.t()


ADMM = builtin("admm", admm, spectrum)
