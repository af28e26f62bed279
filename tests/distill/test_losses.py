import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from prunegpt.distill.losses.base import DistillationLoss
from prunegpt.distill.losses.classes import class_log_probabilities, teacher_classes
from prunegpt.distill.losses.forward_kl import FORWARD_KL
from prunegpt.distill.losses.jensen_shannon import JENSEN_SHANNON
from prunegpt.distill.losses.reverse_kl import REVERSE_KL
from prunegpt.distill.losses.top_k import TOP_K
from prunegpt.errors import DistillationError
from prunegpt.registry import DISTILLATION_LOSSES
from tests.distill.losses_contract import CHECKS, logits

BOUND = {"top_k": {"k": 4}}
LOSSES: list[DistillationLoss] = [
    DISTILLATION_LOSSES.load(name).bind(**BOUND.get(name, {})) for name in DISTILLATION_LOSSES.names()
]
LOSSES += [JENSEN_SHANNON.bind(weight=0.1), DistillationLoss("autograd_only", FORWARD_KL.divergence)]
TEMPERATURES = [0.5, 1.0, 2.0, 4.0]


def test_registered_names_are_the_names_of_the_losses() -> None:
    assert len(DISTILLATION_LOSSES.names()) >= 4
    assert [DISTILLATION_LOSSES.load(name).name for name in DISTILLATION_LOSSES.names()] == DISTILLATION_LOSSES.names()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_contract(loss: DistillationLoss, temperature: float, check) -> None:
    check(loss, temperature)


def _pair(temperature: float) -> tuple[Tensor, Tensor, Categorical, Categorical]:
    student, teacher = logits(7, 5, seed=10), logits(7, 5, seed=11)
    return student, teacher, Categorical(logits=student / temperature), Categorical(logits=teacher / temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_both_directions_of_kl_against_torch_distributions(temperature: float) -> None:
    student, teacher, q, p = _pair(temperature)
    forward = FORWARD_KL.divergence(student, teacher, temperature=temperature)
    torch.testing.assert_close(forward, temperature**2 * kl_divergence(p, q))
    backward = REVERSE_KL.divergence(student, teacher, temperature=temperature)
    torch.testing.assert_close(backward, temperature**2 * kl_divergence(q, p))


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_jensen_shannon_against_torch_distributions(temperature: float, weight: float) -> None:
    student, teacher, q, p = _pair(temperature)
    mixture = Categorical(probs=weight * p.probs + (1 - weight) * q.probs)
    expected = weight * kl_divergence(p, mixture) + (1 - weight) * kl_divergence(q, mixture)
    got = JENSEN_SHANNON.bind(weight=weight).divergence(student, teacher, temperature=temperature)
    torch.testing.assert_close(got, temperature**2 * expected)


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.01, 200), seed=st.integers(0, 10_000))
def test_jensen_shannon_is_symmetric_and_at_most_ln_2(scale: float, seed: int) -> None:
    student, teacher = logits(4, 6, seed=seed, scale=scale), logits(4, 6, seed=seed + 1, scale=scale)
    one = JENSEN_SHANNON.divergence(student, teacher, temperature=1.0)
    other = JENSEN_SHANNON.divergence(teacher, student, temperature=1.0)
    torch.testing.assert_close(one, other)
    assert (one <= math.log(2) + 1e-9).all()
    value, slope = JENSEN_SHANNON.value_and_gradient(student.float(), teacher.float(), temperature=1.0)
    torch.testing.assert_close(value.double(), one, atol=1e-5, rtol=1e-4)
    assert slope.isfinite().all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 3])
def test_top_k_against_torch_distributions_over_the_merged_classes(temperature: float, k: int) -> None:
    student, teacher, q, p = _pair(temperature)
    order = teacher.argsort(-1, descending=True)  # [tokens, vocab]

    def merged(distribution: Categorical) -> Categorical:
        ordered = distribution.probs.gather(-1, order)  # [tokens, vocab]
        return Categorical(probs=torch.cat([ordered[:, :k], ordered[:, k:].sum(-1, keepdim=True)], dim=-1))

    expected = kl_divergence(merged(p), merged(q))
    got = TOP_K.bind(k=k).divergence(student, teacher, temperature=temperature)
    torch.testing.assert_close(got, temperature**2 * expected)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), temperature=st.sampled_from(TEMPERATURES))
def test_top_k_rises_with_k_to_the_full_divergence(seed: int, temperature: float) -> None:
    student, teacher = logits(3, 8, seed=seed), logits(3, 8, seed=seed + 1)
    full = FORWARD_KL.divergence(student, teacher, temperature=temperature)
    values = [TOP_K.bind(k=k).divergence(student, teacher, temperature=temperature) for k in (1, 3, 5, 7, 8, 64)]
    for smaller, larger in pairwise(values):
        assert (larger >= smaller - 1e-9).all()
    torch.testing.assert_close(values[-3], full)
    torch.testing.assert_close(values[-1], full)


def test_class_probabilities_sum_to_one_and_keep_a_rest_far_below_the_kept() -> None:
    teacher = torch.tensor([[60.0, 0.0, 0.0, -1.0]])
    indices, classes = teacher_classes(teacher, 1, 1.0)
    assert indices.tolist() == [[0]]
    rest = math.log(2 + math.exp(-1)) - 60  # 1 - p would be 0 in float32
    torch.testing.assert_close(classes, torch.tensor([[0.0, rest]]))
    assert class_log_probabilities(teacher, indices, 3.0).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (TOP_K, {"kk": 3}, r"unknown option of the loss top_k 'kk'\. Did you mean 'k'\? Valid: k\."),
        (FORWARD_KL, {"k": 3}, r"unknown option of the loss forward_kl 'k'\. Valid: none\."),
    ],
)
def test_unknown_option(loss: DistillationLoss, options: dict[str, float], message: str) -> None:
    with pytest.raises(DistillationError, match=message):
        loss.bind(**options)


def test_option_out_of_range() -> None:
    with pytest.raises(DistillationError, match=r"must be less than 1, got 1\..*reverse_kl"):
        JENSEN_SHANNON.bind(weight=1)
    with pytest.raises(DistillationError, match=r"must be greater than or equal to 1, got 0\."):
        TOP_K.bind(k=0)
