"""Why published perplexities of distilled models were 1.33e9 and more, shown on one pair of tensors.

The divergence was summed over the 1,024 positions of a block (`batchmean` divides by the batch, which was 1), blended
with the cross-entropy, reported as the evaluation loss, and exp() was taken of it.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prunegpt.distill.chunked import chunked_losses
from prunegpt.distill.head import Head
from prunegpt.distill.losses.forward_kl import FORWARD_KL
from prunegpt.distill.targets import HiddenTargets

POSITIONS, VOCAB, TEMPERATURE, HARDNESS = 1024, 512, 2.0, 0.5


def tensors(difference: float) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits [1, positions, vocab] that differ a little, and text as the teacher would write it."""
    generator = torch.Generator().manual_seed(0)
    teacher = 2.5 * torch.randn(1, POSITIONS, VOCAB, generator=generator)
    student = teacher + difference * torch.randn(1, POSITIONS, VOCAB, generator=generator)
    labels = teacher.softmax(-1)[0].multinomial(1, generator=generator).T  # [1, positions]
    return student, teacher, labels


def reported(student: Tensor, teacher: Tensor, labels: Tensor) -> float:
    """The figure as it was computed then: the exponential of the blended, unnormalised training loss."""
    label_loss = F.cross_entropy(student[0], labels[0])
    log_q, p = F.log_softmax(student / TEMPERATURE, dim=-1), F.softmax(teacher / TEMPERATURE, dim=-1)
    teacher_loss = F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2
    return float((1 - HARDNESS) * label_loss + HARDNESS * teacher_loss)


@pytest.mark.parametrize(
    ("difference", "at_least", "at_most"), [(0.3, 1e9, 1e20), (0.7, 1e50, 1e90), (1.7, math.inf, math.inf)]
)
def test_the_same_tensors_give_an_absurd_figure_and_a_plausible_perplexity(
    difference: float, at_least: float, at_most: float
) -> None:
    student, teacher, labels = tensors(difference)
    evaluation_loss = reported(student, teacher, labels)
    try:
        figure = math.exp(evaluation_loss)
    except OverflowError:
        figure = math.inf
    assert at_least <= figure <= at_most
    ours = chunked_losses(
        student[0],
        Head(torch.eye(VOCAB)),
        labels[0],
        HiddenTargets(teacher[0], Head(torch.eye(VOCAB))),
        loss=FORWARD_KL,
        hardness=HARDNESS,
        temperature=TEMPERATURE,
    )
    assert 10 < math.exp(ours.ce) < 300
    assert 0.005 < ours.kd / TEMPERATURE**2 < 0.6
    # Read backwards, the figure gives the divergence of a token.
    backwards = (evaluation_loss - (1 - HARDNESS) * float(ours.ce)) / (HARDNESS * TEMPERATURE**2 * POSITIONS)
    assert backwards == pytest.approx(float(ours.kd) / TEMPERATURE**2, rel=1e-3)


@pytest.mark.parametrize(
    ("figure", "nats"),
    [("1.33e9", 0.0095), ("1.43e13", 0.0140), ("2.76e70", 0.0784), ("4.59e10", 0.0113), ("3.27e130", 0.146)],
)
def test_the_published_rows_read_backwards(figure: str, nats: float) -> None:
    """With a cross-entropy of 3 nats, whose effect is small, they were students close to their teachers."""
    mantissa, exponent = figure.split("e")
    evaluation_loss = math.log(float(mantissa)) + int(exponent) * math.log(10)
    assert (evaluation_loss - 0.5 * 3) / (0.5 * 4 * 1024) == pytest.approx(nats, rel=0.02)
