"""Every criterion, built in or plugged in, passes these."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from prunegpt.pruning.criteria.base import NEEDS, Criterion
from prunegpt.pruning.patterns import NOfM, Pattern, Unstructured
from prunegpt.registry import CRITERIA

NAMES = CRITERIA.names()
OUT, IN = 12, 16


def weight_of(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(OUT, IN, generator=Generator().manual_seed(0)).to(dtype)  # [out, in]


def needed_by(criterion: Criterion, transpose: bool = False) -> dict[str, Any]:
    """Statistics for a layer, those of the weight's shape in the layout of a Conv1D view where asked."""
    generator = Generator().manual_seed(1)
    drawn = {need: torch.randn(OUT, IN, generator=generator) for need in ("gradient", "movement", "squared_gradient")}
    drawn["squared_gradient"] = drawn["squared_gradient"].square()
    if transpose:
        drawn = {need: value.t().contiguous().t() for need, value in drawn.items()}
    given = {**drawn, "input_norm": torch.rand(IN, generator=generator), "generator": Generator().manual_seed(2)}
    return {need: given[need] for need in criterion.needs}


def test_there_are_criteria() -> None:
    assert {"random", "magnitude", "wanda", "movement", "taylor"} <= set(NAMES)


@pytest.fixture(params=NAMES)
def criterion(request: pytest.FixtureRequest) -> Criterion:
    loaded: Criterion = CRITERIA.load(request.param)
    return loaded


def test_it_is_called_what_it_is_registered_as(criterion: Criterion) -> None:
    assert CRITERIA.load(criterion.name) is criterion
    assert criterion.needs <= NEEDS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_finite_float32_of_the_shape_of_the_weight(criterion: Criterion, dtype: torch.dtype) -> None:
    scores = criterion.score(weight_of(dtype), **needed_by(criterion))
    assert scores.shape == (OUT, IN)
    assert scores.dtype == torch.float32
    assert bool(torch.isfinite(scores).all())
    assert not scores.requires_grad
    assert scores.unique().numel() > 1


def test_nothing_it_is_given_changes(criterion: Criterion) -> None:
    weight, needed = weight_of(), needed_by(criterion)
    tensors = {need: value for need, value in needed.items() if isinstance(value, Tensor)}
    copies = {need: value.clone() for need, value in tensors.items()}
    scores = criterion.score(weight, **needed)
    scores.add_(1.0)  # nor does it change later, when the scores do
    assert torch.equal(weight, weight_of())
    assert all(torch.equal(tensors[need], copies[need]) for need in tensors)


def test_it_is_deterministic(criterion: Criterion) -> None:
    first, second = (criterion.score(weight_of(), **needed_by(criterion)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("pattern", [Unstructured(), NOfM(2, 4)], ids=lambda pattern: pattern.name)
def test_a_conv1d_and_its_linear_twin_have_the_same_masks(criterion: Criterion, pattern: Pattern) -> None:
    linear = torch.nn.Linear(IN, OUT)
    linear.weight.data.copy_(weight_of())
    stored = weight_of().t().contiguous()  # [in, out], as Conv1D stores it
    masks = [
        pattern.select(scores, 0.5, rowwise=criterion.rowwise)
        for scores in (
            criterion.score(linear.weight, **needed_by(criterion)),
            criterion.score(stored.t(), **needed_by(criterion, transpose=True)),
        )
    ]
    assert torch.equal(*masks)
    assert int((~masks[0]).sum()) == OUT * IN // 2
