"""What is inside the student against what is inside the teacher: hidden states, and attention maps."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunegpt.errors import DistillationError


def square_head(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ (s - t)² / Σ t² in float32, without a unit: 0 where equal, 1 for a student of zeros.

    Args:
        student: [tokens, width], padding left out.
        teacher: [tokens, width].
    """
    if student.dtype != torch.float64:
        student, teacher = student.float(), teacher.float()
    scale = teacher.square().sum().clamp(min=torch.finfo(teacher.dtype).tiny)
    return (student - teacher).square().sum() / scale


def hidden_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], layer_map: Mapping[int, int], mask: Tensor | None = None
) -> Tensor:
    """The mean of :func:`square_head` over the pairs of blocks: each layer counts on its own scale.

    Kurtic et al. 2023 (SquareHead, arXiv 2310.06927), section 3.1: MSE(student, teacher) / MSE(teacher, 0).

    Args:
        student: the embedding's output and each block's, [batch, length, width] each, as transformers gives them.
        teacher: likewise.
        layer_map: student layer -> teacher layer, counted from 0.
        mask: [batch, length], nonzero where there is a token; None: everywhere.

    Raises:
        DistillationError: the widths differ.
    """
    kept = slice(None) if mask is None else mask.flatten().bool()
    terms = []
    for mine, theirs in layer_map.items():
        ours, other = student[mine + 1], teacher[theirs + 1]  # [batch, length, width] twice; 0 is the embedding
        if ours.shape[-1] != other.shape[-1]:
            raise DistillationError(
                f"hidden states can be compared where they have one width; block {mine} of the student has "
                f"{ours.shape[-1]} and block {theirs} of the teacher {other.shape[-1]}. Set hidden_gain to 0 for this "
                "teacher, or leave the pair out of layer_map."
            )
        terms.append(square_head(ours.flatten(0, 1)[kept], other.flatten(0, 1)[kept]))
    return torch.stack(terms).mean()


def attention_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    layer_map: Mapping[int, int],
    mask: Tensor | None = None,
) -> Tensor:
    """The squared error of attention maps: the mean over blocks, heads and positions that hold a token, in float32.

    Jiao et al. 2019 (TinyBERT, arXiv 1909.10351), equation 7. Only eager attention computes the maps.

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
