"""Forward KL over the teacher's k most probable tokens and the remaining mass as one more class.

The truncation that a cache of k logits a token allows, applied to a teacher that runs. It is a lower bound of the full
forward KL and equals it at k = vocab - 1.
"""

from torch import Tensor

from prunegpt.distill.losses.base import DistillationLoss
from prunegpt.distill.losses.classes import class_divergence, class_value_and_gradient, teacher_classes
from prunegpt.distill.losses.forward_kl import FORWARD_KL


def divergence(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, k: int = 64) -> Tensor:
    """T² KL over the k + 1 classes in nats per token: two arrays [tokens, vocab] give [tokens]."""
    indices, teacher = teacher_classes(teacher_logits, k, temperature)
    return class_divergence(student_logits, indices, teacher, loss=FORWARD_KL, temperature=temperature)


def gradient(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, k: int = 64
) -> tuple[Tensor, Tensor]:
    """The divergence and its derivative by the student's logits."""
    indices, teacher = teacher_classes(teacher_logits, k, temperature)
    return class_value_and_gradient(student_logits, indices, teacher, loss=FORWARD_KL, temperature=temperature)


TOP_K = DistillationLoss("top_k", divergence, gradient)
