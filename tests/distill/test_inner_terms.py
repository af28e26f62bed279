"""Hidden states and attention maps."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunegpt.distill.inner import attention_loss, hidden_loss, square_head
from prunegpt.errors import DistillationError
from prunegpt.spec.distilling import match_layers


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(batch: int, heads: int, length: int, seed: int) -> Tensor:
    """Causal attention maps, exact zeros above the diagonal."""
    scores = random(batch, heads, length, length, seed=seed)
    return scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)


def test_square_head_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    assert square_head(student, teacher).item() == pytest.approx((4 + 4) / (9 + 16))
    assert square_head(teacher, teacher) == 0
    assert square_head(torch.zeros(1, 2), teacher) == 1
    assert square_head(torch.zeros(1, 2), torch.zeros(1, 2)).isfinite()


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_square_head_is_blind_to_the_scale_of_a_layer(scale: float, seed: int) -> None:
    student, teacher = random(5, 4, seed=seed), random(5, 4, seed=seed + 1)
    torch.testing.assert_close(square_head(scale * student, scale * teacher), square_head(student, teacher))


def test_hidden_loss_is_the_mean_over_pairs_and_leaves_padding_out() -> None:
    student = [random(2, 3, 4, seed=seed) for seed in range(3)]
    teacher = [random(2, 3, 4, seed=seed) for seed in range(10, 15)]
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    rows = torch.tensor([0, 1, 3])
    pairs = {0: 1, 1: 3}
    expected = sum(
        ((student[mine + 1].view(6, 4) - teacher[other + 1].view(6, 4))[rows] ** 2).sum()
        / (teacher[other + 1].view(6, 4)[rows] ** 2).sum()
        for mine, other in pairs.items()
    )
    torch.testing.assert_close(hidden_loss(student, teacher, pairs, mask), expected / 2)
    changed = [states.masked_fill(mask.eq(0).unsqueeze(-1), torch.nan) for states in student]
    torch.testing.assert_close(hidden_loss(changed, teacher, pairs, mask), expected / 2)
    everywhere = hidden_loss(student, teacher, pairs)
    torch.testing.assert_close(everywhere, hidden_loss(student, teacher, pairs, torch.ones(2, 3)))
    assert not torch.isclose(everywhere, expected / 2)


def test_widths_must_agree() -> None:
    with pytest.raises(DistillationError, match=r"block 0 of the student has 4 and block 1 of the teacher 6"):
        hidden_loss([random(1, 2, 4, seed=0)] * 2, [random(1, 2, 6, seed=0)] * 3, {0: 1})


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (4, 4, [0, 1, 2, 3]),
        (2, 4, [1, 3]),
        (3, 12, [3, 7, 11]),
        (2, 3, [1, 2]),
        (6, 8, [1, 2, 3, 5, 6, 7]),
        (1, 5, [4]),
    ],
)
def test_automatic_layer_map(student: int, teacher: int, expected: list[int]) -> None:
    assert match_layers(student, teacher) == dict(enumerate(expected))


def test_automatic_layer_map_rises_and_ends_at_the_last_block() -> None:
    for student, teacher in itertools.product(range(1, 14), range(1, 25)):
        if student <= teacher:
            found = list(match_layers(student, teacher).values())
            assert found[-1] == teacher - 1
            assert all(lower < upper for lower, upper in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("student", "given", "message"),
    [
        (5, None, r"teacher is at least as deep as the student; they have 4 and 5 blocks\. Give layer_map"),
        (2, {}, r"must name a block at least"),
        (2, {2: 0}, r"student's blocks are numbered 0 to 1; layer_map has 2 -> 0"),
        (2, {1: 4}, r"teacher's blocks are numbered 0 to 3; layer_map has 1 -> 4"),
        (2, {-1: 0}, r"student's blocks are numbered 0 to 1; layer_map has -1 -> 0"),
    ],
)
def test_layer_maps_that_do_not_fit(student: int, given: dict[int, int] | None, message: str) -> None:
    with pytest.raises(DistillationError, match=message):
        match_layers(student, 4, given)


def test_attention_as_squared_error_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]), torch.tensor([[[[1.0, 0.0], [0.2, 0.8]]]])
    assert attention_loss([student], [teacher], {0: 0}).item() == pytest.approx((0 + 0.09 + 0.09) / 2)


def test_attention_leaves_padding_out_and_stays_finite_where_a_map_is_zero() -> None:
    student, teacher = maps(1, 2, 5, seed=2).requires_grad_(), maps(1, 2, 5, seed=3)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    masked = attention_loss([student], [teacher], {0: 0}, mask)
    torch.testing.assert_close(masked, attention_loss([student[:, :, :3, :3]], [teacher[:, :, :3, :3]], {0: 0}))
    (slope,) = torch.autograd.grad(masked, student)
    assert slope.isfinite().all()
    assert (slope[:, :, 3:] == 0).all()


def test_heads_must_agree() -> None:
    with pytest.raises(DistillationError, match=r"block 0 of the student has 2 heads and block 0 of the teacher 3"):
        attention_loss([maps(1, 2, 3, seed=0)], [maps(1, 3, 3, seed=0)], {0: 0})
