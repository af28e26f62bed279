"""SquareHead: hidden states of the student against those of the teacher, each layer on its own scale.

Kurtic et al. 2023 (arXiv 2310.06927, section 3.1): mean over layers of MSE(student, teacher) / MSE(teacher, 0).
"""

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
    """The mean of :func:`square_head` over the pairs of blocks.

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
