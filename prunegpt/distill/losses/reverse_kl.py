"""Reverse Kullback-Leibler divergence, KL(student || teacher): the student may leave out what it cannot represent.

Gu et al. 2023 (MiniLLM, arXiv 2306.08543) argue for this direction for language models; here it is taken a token at a
time on the given text, T² Σ q (log q - log p).
"""

from torch import Tensor

from prunegpt.distill.losses.base import DistillationLoss, row_dot, scratch_log_softmax, tempered_log_softmax


def divergence(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """T² KL(student || teacher) in nats per token: two arrays [tokens, vocab] give [tokens]."""
    student = tempered_log_softmax(student_logits, temperature)  # [tokens, vocab]
    teacher = tempered_log_softmax(teacher_logits, temperature)  # [tokens, vocab]
    return temperature**2 * (student.exp() * (student - teacher)).sum(-1)


def gradient(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """The divergence D and its derivative T q (log q - log p - D) by the student's logits (D before the factor T²)."""
    student = scratch_log_softmax(student_logits, temperature)  # [tokens, vocab]
    teacher = scratch_log_softmax(teacher_logits, temperature)  # [tokens, vocab]
    ratio = teacher.sub_(student).neg_()  # [tokens, vocab]
    probability = student.exp_()  # [tokens, vocab]
    value = row_dot(probability, ratio)  # [tokens]
    slope = ratio.sub_(value.unsqueeze(-1)).mul_(probability).mul_(temperature)  # [tokens, vocab]
    return value * temperature**2, slope


REVERSE_KL = DistillationLoss("reverse_kl", divergence, gradient)
