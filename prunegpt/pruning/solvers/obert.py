"""oBERT: optimal brain surgeon on the loss itself, with a Fisher matrix of small blocks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.pruning.patterns import Pattern
from prunegpt.pruning.solvers.base import Solution, builtin, target_zeros
from prunegpt.pruning.solvers.factor import LIMIT, damping_schedule

_UNREACHED = "no gradient reaches this layer, so that its weights were chosen by magnitude"
_LEAST = 1e-10  # damping of a Fisher block that has fewer samples than inputs: with less it is singular in float64
CHUNK = 1 << 22  # entries of block inverses held at a time


def obert(
    weight: Tensor,
    *,
    gradients: Tensor,
    pattern: Pattern,
    sparsity: float | None = None,
    mask: Tensor | None = None,
    damping: float = 0.1,
    fisher_block: int = 64,
) -> Solution:
    """Kurtic et al. 2022, "The Optimal BERT Surgeon", arXiv 2203.07259, section 3.2.

    The Hessian of the loss is the empirical Fisher matrix F = λ·I + mean over windows of g·gᵀ, cut into blocks of
    neighbouring inputs of a row. A weight is worth w² / (2·[F⁻¹]_ii) (equation 4). The weights pruned in one block are
    taken out together: w ← w - F⁻¹_·Q·(F⁻¹_QQ)⁻¹·w_Q (equation 5 for a group Q), which is the minimum of the quadratic
    model on that mask. Solution.error is its share, δᵀFδ / wᵀFw without λ. A layer that no gradient reaches, as one
    behind a layer that is pruned whole, is pruned by magnitude, which a note says.

    Args:
        weight: [out, in].
        gradients: [samples, out, in], the gradient of the loss on each calibration window.
        pattern: unstructured or N:M.
        sparsity: share of the weights that is zero afterwards; None = the one of the pattern.
        mask: [out, in], True = kept: what is pruned already stays pruned and counts. Its weights count as zero.
        damping: λ as a share of the mean of the Fisher diagonal.
        fisher_block: inputs in a Fisher block.

    Raises:
        PruningError: the gradients are not finite, or sparsity, pattern and shape do not go together.
    """
    target, _ = target_zeros("obert", weight, sparsity, pattern)
    fisher_block = min(fisher_block, weight.shape[1])
    start_weight = weight.detach().float()  # [out, in]
    if mask is not None:
        start_weight = start_weight * mask
    mean_square = _mean_fisher_diagonal(gradients)
    if mean_square == 0.0:  # F = λ·I whatever λ is: magnitude, and nothing to repair
        kept = pattern.select(start_weight.abs(), target, mask=mask)  # [out, in]
        return Solution(start_weight * kept, kept, 0.0, damping, (_UNREACHED,))
    for dtype, added in damping_schedule(damping):
        if dtype != torch.float64:  # the blocks are small: float64 throughout
            continue
        if gradients.shape[0] < fisher_block and added < _LEAST:
            continue
        ridge = added * mean_square
        diagonals = [
            inverse.diagonal(dim1=1, dim2=2).flatten() if ok else None
            for _, _, inverse, ok in _inverses(start_weight, gradients, mask, ridge, fisher_block)
        ]
        if all(part is not None for part in diagonals):
            break
    else:
        raise PruningError(
            f"the Fisher blocks must be positive definite; they are not at any damping from {damping:g} to {LIMIT:g}. "
            "Calibrate on more windows."
        )
    padded = _blocks(start_weight, fisher_block)  # [out, blocks, fisher block]
    inverse_diagonal = torch.cat([part for part in diagonals if part is not None]).view(padded.shape)
    scores = (padded.double().square() / (2 * inverse_diagonal)).float()  # [out, blocks, fisher block]
    scores = scores.flatten(1)[:, : weight.shape[1]]  # [out, in]
    kept = pattern.select(scores, target, mask=mask)  # [out, in]

    kept_blocks = _blocks(kept, fisher_block)  # [out, blocks, fisher block]
    solved = padded.clone()
    lost = whole = 0.0
    for rows, samples, inverse, _ in _inverses(start_weight, gradients, mask, ridge, fisher_block):
        before = padded[rows].flatten(0, 1).double()  # [row blocks, fisher block]
        change = _surgeon(before, kept_blocks[rows].flatten(0, 1), inverse)
        solved[rows] = (before + change).view_as(solved[rows]).to(solved.dtype)
        lost += float((samples @ change.unsqueeze(2)).square().sum())
        whole += float((samples @ before.unsqueeze(2)).square().sum())
    solution = solved.flatten(1)[:, : weight.shape[1]] * kept  # [out, in]
    notes = () if added == damping else (f"damping raised from {damping:g} to {added:g} for the Fisher blocks",)
    return Solution(solution, kept, lost / whole if whole else 0.0, added, notes)


def _mean_fisher_diagonal(gradients: Tensor) -> float:
    """The mean over weights and samples of the squared gradient."""
    total = sum(float(sample.double().square().sum()) for sample in gradients)
    mean = total / gradients.numel()
    if not mean < float("inf"):
        raise PruningError(
            f"gradients must be finite; their mean square is {mean:g}. Check the calibration data and the loss of the "
            "model."
        )
    return mean


def _blocks(matrix: Tensor, size: int) -> Tensor:
    """[..., in] -> [..., blocks, size], filled up with zeros."""
    padded = torch.nn.functional.pad(matrix, (0, -matrix.shape[-1] % size))
    return padded.reshape(*matrix.shape[:-1], -1, size)  # [..., blocks, size]


def _inverses(
    weight: Tensor, gradients: Tensor, mask: Tensor | None, ridge: float, size: int
) -> Iterator[tuple[slice, Tensor, Tensor, bool]]:
    """For a few rows at a time: the rows, their gradients, the inverse Fisher blocks, and whether they exist.

    With S the samples of a block, [samples, size], F = λ·I + SᵀS/m and by Woodbury's identity
    F⁻¹ = (I - Sᵀ(m·λ·I + S·Sᵀ)⁻¹S) / λ, which inverts samples by samples instead of size by size.

    Yields:
        rows; float64 [row blocks, samples, size]; float64 [row blocks, size, size]; success.
    """
    count = gradients.shape[0]
    in_row = -(-weight.shape[1] // size)
    step = max(CHUNK // (in_row * size * max(size, count)), 1)
    eye = torch.eye(size, dtype=torch.float64, device=weight.device)
    for start in range(0, weight.shape[0], step):
        rows = slice(start, min(start + step, weight.shape[0]))
        part = gradients[:, rows].to(weight.device).double()  # [samples, rows, in]
        if mask is not None:
            part = part * mask[rows]  # what is pruned neither moves nor informs
        samples = _blocks(part, size).flatten(1, 2).transpose(0, 1)  # [row blocks, samples, size]
        if count < size:
            small = samples @ samples.transpose(1, 2)  # [row blocks, samples, samples]
            small.diagonal(dim1=1, dim2=2).add_(count * ridge)
            lower, failed = torch.linalg.cholesky_ex(small)  # [row blocks, samples, samples]
            half = torch.linalg.solve_triangular(lower, samples, upper=False)  # [row blocks, samples, size]
            inverse = (eye - half.transpose(1, 2) @ half) / ridge  # [row blocks, size, size]
        else:
            fisher = samples.transpose(1, 2) @ samples / count  # [row blocks, size, size]
            fisher.diagonal(dim1=1, dim2=2).add_(ridge)
            lower, failed = torch.linalg.cholesky_ex(fisher)  # [row blocks, size, size]
            usable = torch.where(failed.view(-1, 1, 1) == 0, lower, eye)  # [row blocks, size, size]
            inverse = torch.cholesky_inverse(usable)  # [row blocks, size, size]
        ok = not bool(failed.any()) and bool((inverse.diagonal(dim1=1, dim2=2) > 0).all())
        yield rows, samples, inverse, ok


def _surgeon(weight: Tensor, kept: Tensor, inverse: Tensor) -> Tensor:
    """The change that takes the pruned weights of each block to zero at the least cost.

    Args:
        weight: [blocks, size].
        kept: bool [blocks, size].
        inverse: F⁻¹, [blocks, size, size].

    Returns:
        [blocks, size].
    """
    pruned = (~kept).to(weight.dtype)  # [blocks, size]
    system = inverse * pruned.unsqueeze(1) * pruned.unsqueeze(2)  # [blocks, size, size]: F⁻¹_QQ, zero elsewhere
    system.diagonal(dim1=1, dim2=2).add_(1 - pruned)
    lower = torch.linalg.cholesky(system)  # [blocks, size, size]
    push = torch.cholesky_solve((weight * pruned).unsqueeze(2), lower)  # [blocks, size, 1]
    return -(inverse @ push).squeeze(2)  # [blocks, size]


OBERT = builtin("obert", obert)
