"""What every distillation loss has to satisfy, those of plug-ins too."""

import torch
from torch import Tensor

from prunegpt.distill.losses.base import DistillationLoss


def logits(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def check_zero_at_the_teacher(loss: DistillationLoss, temperature: float) -> None:
    same = logits(6, 11, seed=0)
    value, slope = loss.value_and_gradient(same.clone(), same.clone(), temperature=temperature)
    zero = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(loss.divergence(same, same, temperature=temperature), zero, atol=1e-12, rtol=0)
    torch.testing.assert_close(value, zero, atol=1e-12, rtol=0)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-12, rtol=0)


def check_positive_elsewhere(loss: DistillationLoss, temperature: float) -> None:
    value = loss.divergence(logits(50, 11, seed=1), logits(50, 11, seed=2), temperature=temperature)
    assert value.shape == (50,)
    assert (value > 1e-6).all()


def check_gradient(loss: DistillationLoss, temperature: float) -> None:
    """The closed form against autograd, and autograd against finite differences."""
    student, teacher = logits(5, 9, seed=3).requires_grad_(), logits(5, 9, seed=4)

    def divergence(student: Tensor) -> Tensor:
        return loss.divergence(student, teacher, temperature=temperature)

    assert torch.autograd.gradcheck(divergence, student)
    expected = divergence(student)
    (slope,) = torch.autograd.grad(expected.sum(), student)
    got = loss.value_and_gradient(student.detach().clone(), teacher.clone(), temperature=temperature)
    torch.testing.assert_close(got, (expected.detach(), slope))


def check_blind_to_constants(loss: DistillationLoss, temperature: float) -> None:
    student, teacher = logits(5, 9, seed=5), logits(5, 9, seed=6)
    moved = loss.divergence(student + 7.0, teacher - 11.0, temperature=temperature)
    torch.testing.assert_close(moved, loss.divergence(student, teacher, temperature=temperature))


def check_precision(loss: DistillationLoss, temperature: float) -> None:
    """bfloat16 goes in, float32 comes out, and is what float64 gives for the same logits."""
    student, teacher = logits(5, 9, seed=7).bfloat16(), logits(5, 9, seed=8).bfloat16()
    kept = student.clone(), teacher.clone()
    value = loss.divergence(student, teacher, temperature=temperature)
    assert value.dtype == torch.float32
    exact = loss.divergence(student.double(), teacher.double(), temperature=temperature)
    torch.testing.assert_close(value.double(), exact, atol=1e-5, rtol=1e-5)
    assert torch.equal(student, kept[0])
    assert torch.equal(teacher, kept[1])
    closed, slope = loss.value_and_gradient(student, teacher, temperature=temperature)
    assert slope.dtype == torch.float32
    torch.testing.assert_close(closed, value, atol=1e-5, rtol=1e-5)


CHECKS = [
    check_zero_at_the_teacher,
    check_positive_elsewhere,
    check_gradient,
    check_blind_to_constants,
    check_precision,
]
