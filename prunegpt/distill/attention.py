"""Attention maps of the student against those of the teacher.

As squared error (TinyBERT, Jiao et al. 2019, arXiv 1909.10351, equation 7) or as KL divergence from the teacher's map
(MiniLM, Wang et al. 2020, arXiv 2002.10957, equation 3). Only eager attention computes the maps.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from prunegpt.errors import DistillationError, unknown


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ (s - t)² over the keys: [..., keys] twice gives [...]."""
    return (student - teacher).square().sum(-1)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) over the keys, in nats; keys that the teacher does not attend to count nothing."""
    tiny = torch.finfo(student.dtype).tiny
    ratio = teacher.clamp(min=tiny).log() - student.clamp(min=tiny).log()  # [..., keys]
    return (teacher * ratio).sum(-1)


ATTENTION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": squared_error, "kl": divergence}


def attention_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    layer_map: Mapping[int, int],
    mask: Tensor | None = None,
    *,
    kind: str = "mse",
) -> Tensor:
    """The mean over blocks, heads and positions that hold a token, in float32.

    Args:
        student: each block's map, [batch, heads, length, length], queries before keys.
        teacher: likewise.
        layer_map: student block -> teacher block, counted from 0.
        mask: [batch, length], nonzero where there is a token; None: everywhere.
        kind: mse or kl.

    Raises:
        DistillationError: unknown kind, or the numbers of heads differ.
    """
    if kind not in ATTENTION_LOSSES:
        raise DistillationError(unknown("attention loss", kind, ATTENTION_LOSSES))
    terms = []
    for mine, theirs in layer_map.items():
        ours, other = student[mine], teacher[theirs]  # [batch, heads, length, length] twice
        if ours.shape[1] != other.shape[1]:
            raise DistillationError(
                f"attention maps are compared head by head, but block {mine} of the student has {ours.shape[1]} heads "
                f"and block {theirs} of the teacher {other.shape[1]}. Set attention_gain to 0 for this teacher."
            )
        if ours.dtype != torch.float64:
            ours, other = ours.float(), other.float()
        by_query = ATTENTION_LOSSES[kind](ours, other).mean(1)  # [batch, length]
        terms.append(by_query.mean() if mask is None else by_query[mask.bool()].mean())
    return torch.stack(terms).mean()
