"""Forward Kullback-Leibler divergence, KL(teacher || student): the student has to cover all the teacher deems likely.

Hinton et al. 2015 (arXiv 1503.02531): T² Σ p (log p - log q), p and q the softmax of logits / T.
"""

from torch import Tensor

from prunegpt.distill.losses.base import DistillationLoss, row_dot, scratch_log_softmax, tempered_log_softmax


def divergence(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """T² KL(teacher || student) in nats per token: two arrays [tokens, vocab] give [tokens]."""
    student = tempered_log_softmax(student_logits, temperature)  # [tokens, vocab]
    teacher = tempered_log_softmax(teacher_logits, temperature)  # [tokens, vocab]
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1)


def gradient(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """The divergence and its derivative T (q - p) by the student's logits."""
    student = scratch_log_softmax(student_logits, temperature)  # [tokens, vocab]
    teacher = scratch_log_softmax(teacher_logits, temperature)  # [tokens, vocab]
    target = teacher.exp()  # [tokens, vocab]
    value = row_dot(target, teacher.sub_(student)).mul_(temperature**2)
    return value, student.exp_().sub_(target).mul_(temperature)


FORWARD_KL = DistillationLoss("forward_kl", divergence, gradient)
