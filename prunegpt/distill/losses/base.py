"""What a distillation loss is: a divergence per token, and where it pays, its gradient in closed form."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from prunegpt.errors import DistillationError
from prunegpt.registry import DISTILLATION_LOSSES
from prunegpt.spec.problems import option_problems


@dataclass(frozen=True)
class DistillationLoss:
    """A divergence between two next-token distributions.

    Both functions take `student_logits` and `teacher_logits`, finite and of one shape [tokens, vocab], and the keyword
    `temperature`; what else they take by keyword is an option of the loss, set with :meth:`bind`.

    Attributes:
        name: as in the registry.
        divergence: gives [tokens], in nats per token, already times temperature squared (Hinton et al. 2015,
            arXiv 1503.02531, section 2: the factor keeps the gradient's size when the temperature changes). It works in
            float32, or in float64 where its input is, autograd can differentiate it, it leaves its arguments alone, and
            a constant added to all logits of a token changes nothing.
        gradient: gives the same [tokens] and the derivative of their sum by the student's logits, [tokens, vocab].
            It may overwrite both arguments. None: autograd through `divergence` is used.
    """

    name: str
    divergence: Callable[..., Tensor]
    gradient: Callable[..., tuple[Tensor, Tensor]] | None = None

    def bind(self, **options: float | str) -> "DistillationLoss":
        """The same loss with these options fixed.

        Raises:
            DistillationError: the loss has no such option, or the value is not of its type and range.
        """
        known = self.name in DISTILLATION_LOSSES
        valid = (DISTILLATION_LOSSES.entry(self.name) if known else DISTILLATION_LOSSES.read(self)).options
        if told := [message for _, message in option_problems(f"the loss {self.name}", options, valid)]:
            raise DistillationError(" ".join(told))
        gradient = partial(self.gradient, **options) if self.gradient else None
        return replace(self, divergence=partial(self.divergence, **options), gradient=gradient)

    def value_and_gradient(
        self, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """The divergence [tokens] and its derivative by the student's logits [tokens, vocab].

        Both arguments may be overwritten. Nothing is recorded for autograd.
        """
        if self.gradient is not None:
            with torch.no_grad():
                return self.gradient(student_logits, teacher_logits, temperature=temperature)
        with torch.enable_grad():
            exact = student_logits.dtype if student_logits.dtype == torch.float64 else torch.float32
            leaf = student_logits.detach().to(exact).requires_grad_()
            value = self.divergence(leaf, teacher_logits.detach(), temperature=temperature)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope


def tempered_log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) over the last axis, in float32, or float64 where the input is float64."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    return torch.log_softmax(logits / temperature if temperature != 1.0 else logits, dim=-1)


def scratch_log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """:func:`tempered_log_softmax` that may overwrite `logits`."""
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    return torch.log_softmax(logits.div_(temperature) if temperature != 1.0 else logits, dim=-1)


def row_dot(left: Tensor, right: Tensor) -> Tensor:
    """The inner product of each row: [tokens, vocab] twice gives [tokens], without an array for the product."""
    return torch.bmm(left.unsqueeze(1), right.unsqueeze(2)).flatten()  # [tokens]
