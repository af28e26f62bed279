"""The k + 1 classes of a truncated teacher: its k most probable tokens one by one, and all the rest as one class.

A divergence between the class distributions is never larger than between the full ones (data processing), and needs of
the teacher only k numbers per token.
"""

import torch
from torch import Tensor

from prunegpt.distill.losses.base import DistillationLoss, scratch_log_softmax, tempered_log_softmax


def teacher_classes(teacher_logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The teacher's k most probable tokens and its tempered log-probabilities of the k + 1 classes.

    Where k is not below the vocabulary it becomes vocab - 1: the rest is then a single token, and nothing is lost.

    Returns:
        Token indices [tokens, k], most probable first, and log-probabilities [tokens, k + 1], the rest last.
    """
    indices = teacher_logits.topk(min(k, teacher_logits.shape[-1] - 1), dim=-1).indices  # [tokens, k]
    return indices, class_log_probabilities(teacher_logits, indices, temperature)


def class_log_probabilities(logits: Tensor, indices: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) over the classes given by the token `indices` [tokens, k]: [tokens, k + 1]."""
    full = tempered_log_softmax(logits, temperature)  # [tokens, vocab]
    rest = full.scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)  # [tokens, 1]
    return torch.cat([full.gather(-1, indices), rest], dim=-1)  # [tokens, k + 1]


def class_divergence(
    student_logits: Tensor, indices: Tensor, teacher: Tensor, *, loss: DistillationLoss, temperature: float
) -> Tensor:
    """A divergence over the classes of `indices` [tokens, k], times T²: [tokens].

    `teacher` holds the teacher's tempered log-probabilities of the classes, [tokens, k + 1].
    """
    student = class_log_probabilities(student_logits, indices, temperature)  # [tokens, k + 1]
    return temperature**2 * loss.divergence(student, teacher.to(student.dtype), temperature=1.0)


def class_value_and_gradient(
    student_logits: Tensor, indices: Tensor, teacher: Tensor, *, loss: DistillationLoss, temperature: float
) -> tuple[Tensor, Tensor]:
    """:func:`class_divergence` and its derivative by the student's logits [tokens, vocab], which may be overwritten.

    With d the derivative by the class log-probabilities (whose sum over the classes is zero, a divergence being blind
    to a constant in its logits), that by logit j is d_j / T for a kept token and d_rest q_j / q_rest / T for another.
    """
    full = scratch_log_softmax(student_logits, temperature)  # [tokens, vocab]
    kept = full.gather(-1, indices)  # [tokens, k]
    spread = full.exp_().scatter_(-1, indices, 0.0)  # [tokens, vocab]
    rest = spread.sum(-1, keepdim=True).clamp_(min=torch.finfo(spread.dtype).tiny)  # [tokens, 1]
    student = torch.cat([kept, rest.log()], dim=-1)  # [tokens, k + 1]
    value, by_class = loss.value_and_gradient(student, teacher.to(student.dtype, copy=True), temperature=1.0)
    by_class = by_class * temperature  # [tokens, k + 1]: T² of the loss, 1/T of the tempered logits
    slope = spread.mul_(by_class[:, -1:] / rest).scatter_(-1, indices, by_class[:, :-1])  # [tokens, vocab]
    return value * temperature**2, slope
