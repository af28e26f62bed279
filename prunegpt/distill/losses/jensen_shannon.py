"""Jensen-Shannon divergence: bounded, and with `weight` between the two directions of KL.

Agarwal et al. 2023 (GKD, arXiv 2306.13649, equation 1): T² (w KL(p || m) + (1 - w) KL(q || m)) with m = w p + (1 - w)q,
p the teacher, q the student. At w = 1/2 it is symmetric and at most ln 2 (times T²).
"""

import math

import torch
from torch import Tensor

from prunegpt.distill.losses.base import DistillationLoss, row_dot, scratch_log_softmax, tempered_log_softmax


def divergence(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, weight: float = 0.5) -> Tensor:
    """T² JS in nats per token: two arrays [tokens, vocab] give [tokens].

    `weight` is the teacher's share of the mixture.
    """
    student = tempered_log_softmax(student_logits, temperature)  # [tokens, vocab]
    teacher = tempered_log_softmax(teacher_logits, temperature)  # [tokens, vocab]
    mixture = torch.logaddexp(teacher + math.log(weight), student + math.log1p(-weight))  # [tokens, vocab]
    from_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)  # [tokens]
    from_student = (student.exp() * (student - mixture)).sum(-1)  # [tokens]
    return temperature**2 * (weight * from_teacher + (1 - weight) * from_student)


def gradient(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, weight: float = 0.5
) -> tuple[Tensor, Tensor]:
    """The divergence and its derivative T (1 - w) q (r - Σ q r), r = log q - log m, by the student's logits."""
    student = scratch_log_softmax(student_logits, temperature)  # [tokens, vocab]
    teacher = scratch_log_softmax(teacher_logits, temperature)  # [tokens, vocab]
    expected, probability = teacher.exp(), student.exp()  # [tokens, vocab] twice
    mixture = torch.lerp(probability, expected, weight)  # [tokens, vocab]
    mixture.clamp_(min=torch.finfo(mixture.dtype).tiny).log_()
    from_teacher = row_dot(expected, teacher.sub_(mixture))  # [tokens]
    ratio = student.sub_(mixture)  # [tokens, vocab]
    from_student = row_dot(probability, ratio)  # [tokens]
    slope = ratio.sub_(from_student.unsqueeze(-1)).mul_(probability).mul_(temperature * (1 - weight))  # [tokens, vocab]
    return temperature**2 * (weight * from_teacher + (1 - weight) * from_student), slope


JENSEN_SHANNON = DistillationLoss("jensen_shannon", divergence, gradient)
