"""SparseGPT: prune columns from left to right, and let the columns to the right make up for it."""

import torch
from torch import Tensor

from prunegpt.pruning.patterns import NOfM, Pattern
from prunegpt.pruning.solvers.base import Solution, builtin, quotas, reconstruction_error, target_zeros
from prunegpt.pruning.solvers.factor import InverseFactor, inverse_factor
from prunegpt.pruning.threshold import keep_largest

_STRIP = 16  # columns whose updates reach one another at once; the rest of the block is updated by one product


def sparsegpt(
    weight: Tensor,
    *,
    gram: Tensor,
    pattern: Pattern,
    sparsity: float | None = None,
    mask: Tensor | None = None,
    damping: float = 0.01,
    block_size: int = 128,
    factor: InverseFactor | None = None,
) -> Solution:
    """Frantar & Alistarh 2023, "SparseGPT", arXiv 2301.00774, algorithm 1.

    Weights are chosen a block of columns at a time: the lowest w² / U_jj² over all rows of the block, so that rows may
    differ; for N:M in each group of each row, when the columns before it are done. Every block gets its share of the
    zeros, to the last one exactly.

    Args:
        weight: [out, in].
        gram: XᵀX, [in, in].
        pattern: unstructured or N:M.
        sparsity: share of the weights that is zero afterwards; None = the one of the pattern.
        mask: [out, in], True = kept: what is pruned already stays pruned and counts. Its weights count as zero.
        damping: what is added to the diagonal of the Gram matrix, as a share of its mean.
        block_size: columns in which weights are chosen together; for N:M rounded down to whole groups.
        factor: :func:`inverse_factor` of the Gram matrix, where it is known.

    Raises:
        PruningError: the Gram matrix cannot be inverted, or sparsity, pattern and shape do not go together.
    """
    _, zeros = target_zeros("sparsegpt", weight, sparsity, pattern)
    factor = factor or inverse_factor(gram, damping=damping)
    start_weight = weight.detach().float()  # [out, in]
    if mask is not None:
        start_weight = start_weight * mask
    # Copies, in which a column of the weight is contiguous: [in, out].
    columns = start_weight.t().clone(memory_format=torch.contiguous_format)
    kept = torch.ones_like(columns, dtype=torch.bool)
    if mask is not None:
        kept.copy_(mask.t())
    group = pattern.group if isinstance(pattern, NOfM) else 1
    step = max(block_size // group, 1) * group
    starts = range(0, columns.shape[0], step)
    widths = [min(step, columns.shape[0] - start) for start in starts]
    lost = (~kept).sum(dim=1).tolist() if mask is not None else [0] * len(kept)  # of each column
    pruned = [sum(lost[start : start + step]) for start in starts]
    counts = quotas([width * columns.shape[1] for width in widths], pruned, zeros)

    for start, count in zip(starts, counts, strict=True):
        end = min(start + step, columns.shape[0])
        block = columns[start:end]  # [block, out]
        upper = factor.upper[start:end, start:end]  # [block, block]
        # A weight that is not zero and has no influence is worth nothing, and its neighbours owe it nothing.
        worth = (~factor.dead[start:end] / upper.diagonal().square()).unsqueeze(1)  # [block, 1]
        if isinstance(pattern, NOfM):
            errors = _prune_groups(block, upper, worth, kept[start:end], pattern)  # [block, out]
        else:
            scores = (block.square() * worth).t()  # [out, block]: ties go in the order of the weight
            kept[start:end] = keep_largest(scores, count, mask=kept[start:end].t()).t()
            errors = _prune_strip_by_strip(block, upper, kept[start:end])  # [block, out]
        columns[end:].addmm_(factor.upper[start:end, end:].t(), errors, alpha=-1)

    chosen = kept.t().contiguous()  # [out, in]
    solved = columns.masked_fill_(~kept, 0.0).t().contiguous()  # [out, in]
    error = reconstruction_error(solved, start_weight, gram)
    return Solution(solved, chosen, error, factor.damping, factor.notes)


def _prune_strip_by_strip(block: Tensor, upper: Tensor, kept: Tensor) -> Tensor:
    """Prunes the columns of a block in order and updates those after them in the block; returns the scaled errors.

    Args:
        block: [block, out], is changed.
        upper: the inverse factor of the block, [block, block].
        kept: bool [block, out].

    Returns:
        (w - w pruned) / U_jj, [block, out].
    """
    errors = torch.empty_like(block)  # [block, out]
    lost = ~kept / upper.diagonal().unsqueeze(1)  # [block, out]: 1 / U_jj where pruned, else 0
    for start in range(0, block.shape[0], _STRIP):
        end = min(start + _STRIP, block.shape[0])
        _prune_columns(block, upper, lost, errors, start, end, end)
        block[end:].addmm_(upper[start:end, end:].t(), errors[start:end], alpha=-1)
    return errors


def _prune_groups(block: Tensor, upper: Tensor, worth: Tensor, kept: Tensor, pattern: NOfM) -> Tensor:
    """As :func:`_prune_strip_by_strip`, with each N:M group chosen when its turn comes; `kept` is changed."""
    errors = torch.empty_like(block)  # [block, out]
    lost = torch.empty_like(block)  # [block, out]
    group = pattern.group
    strip = max(_STRIP // group, 1) * group
    for start in range(0, block.shape[0], strip):
        end = min(start + strip, block.shape[0])
        for first in range(start, end, group):
            last = first + group
            scores = block[first:last].square() * worth[first:last]  # [group, out]
            chosen = pattern.select(scores.t(), mask=kept[first:last].t())  # [out, group]
            kept[first:last] = chosen.t()
            lost[first:last] = ~kept[first:last] / upper.diagonal()[first:last].unsqueeze(1)
            _prune_columns(block, upper, lost, errors, first, last, end)
        block[end:].addmm_(upper[start:end, end:].t(), errors[start:end], alpha=-1)
    return errors


def _prune_columns(block: Tensor, upper: Tensor, lost: Tensor, errors: Tensor, first: int, last: int, end: int) -> None:
    """Columns first to last: their errors, and what they do to the columns after them up to `end`."""
    for column in range(first, last):
        torch.mul(block[column], lost[column], out=errors[column])  # [out]
        block[column + 1 : end].addr_(upper[column, column + 1 : end], errors[column], alpha=-1)


SPARSEGPT = builtin("sparsegpt", sparsegpt, inverse_factor)
