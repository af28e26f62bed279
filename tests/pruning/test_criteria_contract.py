"""Every criterion, built in or plugged in, passes these."""

import pytest
import torch
from torch import Tensor

from prunegpt.pruning.criteria.base import NEEDS, Criterion
from prunegpt.pruning.patterns import NOfM, Pattern, Unstructured
from prunegpt.registry import CRITERIA
from tests.support.criteria import IN, OUT, needed_by, weight_of

NAMES = CRITERIA.names()


def test_there_are_criteria() -> None:
    assert {"random", "magnitude", "wanda", "wanda++", "movement", "taylor"} <= set(NAMES)


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
