"""Attention maps of the student against those of the teacher, as squared error. Only eager attention computes them.

TinyBERT, Jiao et al. 2019, arXiv 1909.10351, equation 7.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunegpt.errors import DistillationError


def attention_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    layer_map: Mapping[int, int],
    mask: Tensor | None = None,
) -> Tensor:
    """The mean over blocks, heads and positions that hold a token, in float32.

    Args:
        student: each block's map, [batch, heads, length, length], queries before keys.
        teacher: likewise.
        layer_map: student layer -> teacher layer, counted from 0.
        mask: [batch, length], nonzero where there is a token; None: everywhere.

    Raises:
        DistillationError: the numbers of heads differ.
    """
    terms = []
    for mine, theirs in layer_map.items():
        ours, other = student[mine], teacher[theirs]  # [batch, heads, length, length] twice
        if ours.shape[1] != other.shape[1]:
            raise DistillationError(
                f"attention maps are compared head by head; block {mine} of the student has {ours.shape[1]} heads and "
                f"block {theirs} of the teacher {other.shape[1]}. Set attention_gain to 0 for this teacher."
            )
        if ours.dtype != torch.float64:
            ours, other = ours.float(), other.float()
        by_query = (ours - other).square().sum(-1).mean(1)  # [batch, length]
        kept = by_query if mask is None else by_query[mask.bool()]  # [positions]
        terms.append(kept.mean() if kept.numel() else kept.sum())
    return torch.stack(terms).mean()
