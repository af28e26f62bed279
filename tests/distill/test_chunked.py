"""The chunked blend against the same formula on whole logits, and what must not change it."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from prunegpt.distill.chunked import ChunkedLosses, chunked_losses
from prunegpt.distill.head import Head
from prunegpt.distill.losses.base import DistillationLoss
from prunegpt.distill.losses.classes import class_divergence, teacher_classes
from prunegpt.distill.losses.forward_kl import FORWARD_KL
from prunegpt.distill.losses.jensen_shannon import JENSEN_SHANNON
from prunegpt.distill.losses.reverse_kl import REVERSE_KL
from prunegpt.distill.losses.top_k import TOP_K
from prunegpt.distill.targets import HiddenTargets, Targets, TopKTargets, shift_labels
from prunegpt.errors import DistillationError

TOKENS, WIDTH, VOCAB = 9, 6, 13
ALL = [FORWARD_KL, REVERSE_KL, JENSEN_SHANNON, TOP_K.bind(k=3), DistillationLoss("plug-in", REVERSE_KL.divergence)]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def problem(
    seed: int = 0, dtype: torch.dtype = torch.float64, **head: Any
) -> tuple[Tensor, Head, Tensor, HiddenTargets]:
    """Hidden states, head with bias, labels two of which are ignored, and a teacher of another width."""
    hidden = random(TOKENS, WIDTH, seed=seed, dtype=dtype).requires_grad_()
    weight = random(VOCAB, WIDTH, seed=seed + 1, dtype=dtype).requires_grad_()
    bias = random(VOCAB, seed=seed + 2, dtype=dtype).requires_grad_()
    labels = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(seed + 3))
    labels[[2, 8]] = -100
    teacher = HiddenTargets(
        random(TOKENS, 4, seed=seed + 4, dtype=dtype), Head(random(VOCAB, 4, seed=seed + 5, dtype=dtype))
    )
    return hidden, Head(weight, bias, **head), labels, teacher


def whole(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    teacher: Targets | None,
    *,
    loss: DistillationLoss,
    hardness: float,
    temperature: float,
    denominator: float | None = None,
) -> ChunkedLosses:
    """The formula, as written, on whole logits."""
    logits = hidden @ head.weight.t()
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    mask = labels != -100
    count = denominator or mask.sum()
    ce = F.cross_entropy(logits[mask], labels[mask], reduction="sum") / count
    if isinstance(teacher, HiddenTargets):
        values = loss.divergence(logits, teacher.hidden @ teacher.head.weight.t(), temperature=temperature)
    else:
        assert teacher is not None
        classes = teacher.indices, teacher.log_probabilities
        values = class_divergence(logits, *classes, loss=loss, temperature=temperature)
    kd = values[mask].sum() / count
    return ChunkedLosses((1 - hardness) * ce + hardness * kd, ce.detach(), kd.detach())


def gradients(losses: ChunkedLosses, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(losses.total, inputs)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 7, None])
@pytest.mark.parametrize("hardness", [0.3, 1.0])
@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_values_and_gradients_are_those_of_whole_logits(
    loss: DistillationLoss, hardness: float, chunk_tokens: int | None
) -> None:
    hidden, head, labels, teacher = problem(scale=1.3, softcap=5.0)
    assert head.bias is not None
    settings: dict[str, Any] = {"loss": loss, "hardness": hardness, "temperature": 2.0}
    expected = whole(hidden, head, labels, teacher, **settings)
    got = chunked_losses(hidden, head, labels, teacher, chunk_tokens=chunk_tokens, **settings)
    torch.testing.assert_close(tuple(got), tuple(expected))
    inputs = (hidden, head.weight, head.bias)
    torch.testing.assert_close(gradients(got, *inputs), gradients(expected, *inputs))


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_a_cached_teacher_against_whole_logits(loss: DistillationLoss) -> None:
    hidden, head, labels, teacher = problem()
    assert head.bias is not None
    cached = TopKTargets(*teacher_classes(teacher.hidden @ teacher.head.weight.t(), 3, 2.0))
    settings: dict[str, Any] = {"loss": loss, "hardness": 0.5, "temperature": 2.0}
    expected = whole(hidden, head, labels, cached, **settings)
    got = chunked_losses(hidden, head, labels, cached, chunk_tokens=4, **settings)
    torch.testing.assert_close(tuple(got), tuple(expected))
    inputs = (hidden, head.weight, head.bias)
    torch.testing.assert_close(gradients(got, *inputs), gradients(expected, *inputs))
    if loss is FORWARD_KL:
        running = chunked_losses(hidden, head, labels, teacher, **settings | {"loss": TOP_K.bind(k=3)})
        torch.testing.assert_close(got.kd, running.kd)
        same = chunked_losses(hidden, head, labels, cached, **settings | {"loss": TOP_K.bind(k=3)})
        torch.testing.assert_close(got.kd, same.kd)


class Fresh(torch.autograd.Function):
    """The chunked total, computed anew for each backward, since gradcheck asks for several."""

    @staticmethod
    def forward(ctx: Any, compute: Any, *inputs: Tensor) -> Tensor:
        ctx.compute = compute
        ctx.save_for_backward(*inputs)
        return compute(*inputs).total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            return None, *torch.autograd.grad(ctx.compute(*leaves).total, leaves, grad)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_gradients_against_finite_differences(loss: DistillationLoss) -> None:
    hidden, head, labels, teacher = problem(scale=0.7, softcap=4.0)

    def compute(hidden: Tensor, weight: Tensor, bias: Tensor) -> ChunkedLosses:
        changed = replace(head, weight=weight, bias=bias)
        return chunked_losses(
            hidden, changed, labels, teacher, loss=loss, hardness=0.4, temperature=1.5, chunk_tokens=2, denominator=5
        )

    assert torch.autograd.gradcheck(lambda *inputs: Fresh.apply(compute, *inputs), (hidden, head.weight, head.bias))


def test_cross_entropy_alone_needs_no_teacher() -> None:
    hidden, head, labels, _ = problem()
    assert head.bias is not None
    expected = F.cross_entropy(F.linear(hidden, head.weight, head.bias), labels)
    got = chunked_losses(hidden, head, labels, chunk_tokens=2)
    torch.testing.assert_close(got.total, expected)
    assert got.kd == 0
    inputs = (hidden, head.weight, head.bias)
    torch.testing.assert_close(gradients(got, *inputs), torch.autograd.grad(expected, inputs))


def test_a_tied_embedding_gets_both_gradients() -> None:
    weight = random(VOCAB, WIDTH, seed=0).requires_grad_()
    tokens = torch.tensor([1, 5, 5, 12, 0])
    labels = torch.tensor([5, 5, 12, 0, -100])

    def hidden() -> Tensor:
        return torch.tanh(F.embedding(tokens, weight))

    F.cross_entropy(hidden() @ weight.t(), labels).backward()
    expected, weight.grad = weight.grad, None
    chunked_losses(hidden(), Head(weight), labels, chunk_tokens=2).total.backward()
    torch.testing.assert_close(weight.grad, expected)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, head, labels, _ = problem()
    frozen = Head(head.weight.detach())
    losses = chunked_losses(hidden, frozen, labels)
    losses.total.backward()
    assert hidden.grad is not None
    assert frozen.weight.grad is None


def test_without_gradients_the_values_are_the_same() -> None:
    hidden, head, labels, teacher = problem()
    settings: dict[str, Any] = {"loss": REVERSE_KL, "hardness": 0.5, "temperature": 2.0}
    expected = chunked_losses(hidden, head, labels, teacher, **settings)
    with torch.no_grad():
        got = chunked_losses(hidden, head, labels, teacher, **settings)
    assert not got.total.requires_grad
    torch.testing.assert_close(tuple(got), tuple(losses.detach() for losses in expected))


@settings(deadline=None, max_examples=30)
@given(cut=st.integers(1, TOKENS - 1), seed=st.integers(0, 1000))
def test_accumulation_over_uneven_micro_batches_gives_the_whole_batch(cut: int, seed: int) -> None:
    hidden, head, labels, teacher = problem(seed)
    settings: dict[str, Any] = {"loss": FORWARD_KL, "hardness": 0.5, "temperature": 2.0}
    expected = chunked_losses(hidden, head, labels, teacher, **settings)
    parts = [
        chunked_losses(
            hidden[rows],
            head,
            labels[rows],
            teacher[torch.arange(TOKENS)[rows]],
            denominator=torch.tensor(int((labels != -100).sum())),
            **settings,
        )
        for rows in (slice(0, cut), slice(cut, TOKENS))
    ]
    added = ChunkedLosses(*(sum(values) for values in zip(*parts, strict=True)))  # type: ignore[arg-type]
    torch.testing.assert_close(tuple(added), tuple(expected))
    inputs = (hidden, head.weight)
    torch.testing.assert_close(gradients(added, *inputs), gradients(expected, *inputs))


def test_repeating_the_batch_or_padding_it_changes_nothing() -> None:
    hidden, head, labels, teacher = problem()
    settings: dict[str, Any] = {"loss": FORWARD_KL, "hardness": 0.5, "temperature": 2.0}
    expected = chunked_losses(hidden, head, labels, teacher, **settings)
    thrice = HiddenTargets(teacher.hidden.repeat(3, 1), teacher.head)
    repeated = chunked_losses(hidden.repeat(3, 1), head, labels.repeat(3), thrice, **settings)
    torch.testing.assert_close(tuple(repeated), tuple(expected))
    rubbish = torch.full((4, WIDTH), math.nan, dtype=torch.float64)
    padded = chunked_losses(
        torch.cat([hidden, rubbish]),
        head,
        torch.cat([labels, torch.full((4,), -100)]),
        HiddenTargets(torch.cat([teacher.hidden, rubbish[:, :4]]), teacher.head),
        **settings,
    )
    assert padded == expected
    (slope,) = gradients(padded, hidden)
    torch.testing.assert_close(slope, gradients(expected, hidden)[0])
    assert (slope[labels == -100] == 0).all()


def test_no_labels_at_all_give_zero() -> None:
    hidden, head, labels, teacher = problem()
    ignored = torch.full_like(labels, -100)
    losses = chunked_losses(hidden, head, ignored, teacher, loss=FORWARD_KL, hardness=0.5)
    assert losses.total == 0
    for slope in gradients(losses, hidden, head.weight):
        assert torch.equal(slope, torch.zeros_like(slope))


def test_the_teacher_itself_as_student_has_kd_zero_and_the_gradient_of_ce() -> None:
    hidden, head, labels, _ = problem()
    head = Head(head.weight)
    twin = HiddenTargets(hidden.detach(), Head(head.weight.detach()))
    losses = chunked_losses(hidden, head, labels, twin, loss=FORWARD_KL, hardness=0.5, temperature=2.0)
    assert losses.kd.abs() < 1e-14
    plain = gradients(chunked_losses(hidden, head, labels), hidden, head.weight)
    torch.testing.assert_close(gradients(losses, hidden, head.weight), tuple(slope / 2 for slope in plain))


def test_heads_that_differ_by_padding_are_compared_on_what_they_share() -> None:
    hidden, head, labels, teacher = problem()
    assert head.bias is not None
    labels = labels.clamp(max=9)
    short = HiddenTargets(teacher.hidden, Head(teacher.head.weight[:11]))
    settings: dict[str, Any] = {"loss": FORWARD_KL, "hardness": 0.5, "temperature": 2.0}
    with pytest.raises(DistillationError, match=r"same vocabulary; their heads have 13 and 11 rows.*`vocabulary`"):
        chunked_losses(hidden, head, labels, short, **settings)
    with pytest.raises(DistillationError, match=r"must not exceed either head, got 12"):
        chunked_losses(hidden, head, labels, short, vocabulary=12, **settings)
    got = chunked_losses(hidden, head, labels, short, vocabulary=10, chunk_tokens=4, **settings)
    logits = F.linear(hidden, head.weight, head.bias)
    mask = labels != -100
    ce = F.cross_entropy(logits, labels)
    targets = (short.hidden @ short.head.weight.t())[:, :10]
    kd = FORWARD_KL.divergence(logits[:, :10], targets, temperature=2.0)[mask].mean()
    torch.testing.assert_close(got.total, (ce + kd) / 2)
    inputs = (hidden, head.weight, head.bias)
    torch.testing.assert_close(gradients(got, *inputs), torch.autograd.grad((ce + kd) / 2, inputs))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bfloat16_stays_near_float64(weights: torch.dtype) -> None:
    """Under autocast (float32 weights) and in a bfloat16 model; bfloat16 keeps 8 bits, logits here reach 10."""
    hidden, head, labels, teacher = problem(dtype=torch.float32)
    exact = whole(hidden.double(), replace(head, weight=head.weight.double(), bias=None), labels,
                  HiddenTargets(teacher.hidden.double(), Head(teacher.head.weight.double())),
                  loss=FORWARD_KL, hardness=0.5, temperature=2.0)  # fmt: skip
    expected = gradients(exact, hidden, head.weight)
    half = hidden.detach().bfloat16().requires_grad_()
    cast = head.weight.detach().to(weights).requires_grad_()
    twin = HiddenTargets(teacher.hidden.bfloat16(), Head(teacher.head.weight.to(weights)))
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        got = chunked_losses(half, Head(cast), labels, twin, loss=FORWARD_KL, hardness=0.5, temperature=2.0)
    assert got.total.dtype == torch.float32
    torch.testing.assert_close(got.total.double(), exact.total, rtol=0.02, atol=0.02)
    slopes = gradients(got, half, cast)
    assert [slope.dtype for slope in slopes] == [torch.bfloat16, weights]
    for slope, reference in zip(slopes, expected, strict=True):
        assert F.cosine_similarity(slope.double().flatten(), reference.double().flatten(), dim=0) > 0.999


def test_float16_gradients_of_a_large_batch_do_not_underflow() -> None:
    """Divided by a million tokens before the product, the smaller half of these gradients would be zero in float16."""
    hidden, head, labels, _ = problem(dtype=torch.float16)
    losses = chunked_losses(hidden, Head(head.weight), labels, denominator=1e6)
    reference = chunked_losses(hidden.double(), Head(head.weight.double()), labels, denominator=1e6)
    expected = torch.autograd.grad(reference.total * 2**16, hidden)[0]
    (slope,) = torch.autograd.grad(losses.total * 2**16, hidden)
    torch.testing.assert_close(slope, expected, rtol=0.05, atol=1e-3)


def test_a_second_backward_is_refused() -> None:
    hidden, head, labels, _ = problem()
    total = chunked_losses(hidden, head, labels).total
    total.backward(retain_graph=True)
    with pytest.raises(DistillationError, match="backward\\(\\) ran a second time"):
        total.backward()


def test_shifted_labels_are_those_of_transformers() -> None:
    labels = torch.tensor([[1, 2, -100, 4], [5, 6, 7, 8]])
    assert shift_labels(labels).tolist() == [2, -100, 4, -100, 6, 7, 8, -100]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hardness": 1.5}, r"hardness is the share of the teacher's term, 0 to 1, got 1.5"),
        ({"temperature": 0.0}, r"temperature must be above 0, got 0.0"),
        ({"teacher": None}, r"hardness 0.5 needs a teacher and a loss, got no teacher"),
        ({"loss": None}, r"hardness 0.5 needs a teacher and a loss, got no loss"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"must agree, got \[9, 6\], \[3\] and \[13, 6\]"),
        ({"teacher": HiddenTargets(torch.zeros(4, 2), Head(torch.zeros(13, 2)))}, r"positions; they have 9 and 4"),
        ({"teacher": TopKTargets(torch.zeros(9, 3), torch.zeros(9, 3))}, r"need k \+ 1 log-prob.* k = 3 and \[9, 3\]"),
        ({"teacher": TopKTargets(torch.zeros(9, 13), torch.zeros(9, 14))}, r"k is 13 and the head has 13 rows"),
    ],
)
def test_requests_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    hidden, head, labels, teacher = problem()
    settings: dict[str, Any] = {"loss": FORWARD_KL, "hardness": 0.5, "teacher": teacher, "labels": labels} | change
    with pytest.raises(DistillationError, match=message):
        chunked_losses(hidden, head, settings.pop("labels"), settings.pop("teacher"), **settings)


@pytest.mark.slow
def test_inside_torch_compile_it_is_a_graph_break_with_the_same_gradients() -> None:
    hidden, head, labels, teacher = problem(dtype=torch.float32)
    body = torch.nn.Linear(WIDTH, WIDTH)

    def step(inputs: Tensor) -> Tensor:
        states = torch.tanh(body(inputs))
        return chunked_losses(states, head, labels, teacher, loss=FORWARD_KL, hardness=0.5, temperature=2.0).total * 2

    inputs = (body.weight, head.weight)
    expected = torch.autograd.grad(step(hidden.detach()), inputs)
    got = torch.autograd.grad(torch.compile(step, backend="aot_eager")(hidden.detach()), inputs)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("teacher", ["none", "running", "cached"])
@pytest.mark.parametrize("denominator", [None, 5.0])
def test_tokens_that_weigh_nothing_are_as_those_that_are_left_out(teacher: str, denominator: float | None) -> None:
    found = []
    for compact in (True, False):
        hidden, head, labels, running = problem()
        targets: Targets | None = None if teacher == "none" else running
        if teacher == "cached":
            targets = TopKTargets(*teacher_classes(running.head.apply(running.hidden), 3, 2.0))
        asked = {"loss": FORWARD_KL, "hardness": 0.0 if targets is None else 0.4, "temperature": 2.0}
        losses = chunked_losses(
            hidden, head, labels, targets, **asked, chunk_tokens=4, denominator=denominator, compact=compact
        )
        losses.total.backward()
        found.append([*losses, hidden.grad, head.weight.grad, head.bias.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert not found[1][3][[2, 8]].any()
