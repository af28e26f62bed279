"""DSnoT: weights are grown and pruned by turns until the mean output of a row is that of the dense one."""

import torch
from torch import Tensor


def dsnot(
    weight: Tensor,
    mask: Tensor,
    *,
    input_mean: Tensor,
    input_variance: Tensor,
    input_norm: Tensor,
    group: int,
    held: Tensor | None = None,
    cycles: int = 50,
) -> Tensor:
    """Zhang et al. 2023, "Dynamic Sparse No Training", arXiv 2310.08915, eq. 3 to 6.

    What the mean output of a row lacks is E = Σ w_j·E[x_j] over its pruned weights. A cycle keeps the pruned weight
    with the largest sign(E)·w_i·E[x_i] / Var(x_i), and prunes in its place, of the kept weights with sign(E)·w_j·E[x_j]
    below 0, the one with the least |w_j|·||x_j||. A row is done when that would not bring E nearer to 0 (the paper
    stops at a threshold instead), or after some cycles.

    Args:
        weight: [out, in].
        mask: bool [out, in], True = kept: where to start.
        input_mean: [in], the mean of each input feature over the calibration tokens.
        input_variance: [in], its variance.
        input_norm: [in], its Euclidean norm.
        group: inputs that follow one another among which weights are exchanged: M of a pattern N:M, else all.
        held: bool [out, in]; what is False stays pruned.
        cycles: exchanges in a row, at most.

    Returns:
        bool [out, in], True = kept; as many in each group of each row as in `mask`.
    """
    kept = mask.clone()
    closed = torch.zeros_like(mask) if held is None else ~held  # [out, in]
    share = weight.detach().float() * input_mean  # [out, in]: of the mean output
    score = weight.detach().float().abs() * input_norm  # [out, in]
    steady = share / input_variance.clamp(min=torch.finfo(torch.float32).tiny)  # [out, in]
    lacking = share.masked_fill(kept | closed, 0).sum(dim=1)  # [out]
    groups = torch.arange(weight.shape[1], device=weight.device) // group  # [in]
    rows = torch.arange(len(weight), device=weight.device)  # [rows]: that are not done
    for _ in range(cycles):
        sign, near = lacking[rows, None].sign(), share[rows]
        falls = kept[rows] & (near * sign < 0)  # [rows, in]
        grows = ~(kept[rows] | closed[rows]) & (near * sign > 0)  # [rows, in]
        grows &= falls.view(len(rows), -1, group).any(dim=2).repeat_interleave(group, dim=1)
        grown = (steady[rows] * sign).masked_fill_(~grows, -torch.inf).argmax(dim=1)  # [rows]
        falls &= groups == groups[grown, None]
        pruned = score[rows].masked_fill_(~falls, torch.inf).argmin(dim=1)  # [rows]
        after = lacking[rows] - share[rows, grown] + share[rows, pruned]  # [rows]
        better = grows.any(dim=1) & (after.abs() < lacking[rows].abs())  # [rows]
        rows, grown, pruned = rows[better], grown[better], pruned[better]
        if not len(rows):
            break
        kept[rows, grown], kept[rows, pruned] = True, False
        lacking[rows] = after[better]
    return kept
