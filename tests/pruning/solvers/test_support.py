"""Least squares on a mask against normal equations solved row by row in float64."""

import pytest
import torch

from prunegpt.pruning.solvers.support import least_squares
from tests.pruning.solvers.layers import best_on_support, damped, layer


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_it_is_the_exact_solution_on_the_support(kept: float) -> None:
    made = layer(8, 24)
    mask = torch.rand(8, 24, generator=torch.Generator().manual_seed(1)) < kept
    hessian = damped(made.gram, 0.01)
    found = least_squares(
        made.weight.double(), original=made.weight.double(), gram=hessian, mask=mask, iterations=500, tolerance=1e-10
    )
    torch.testing.assert_close(found, best_on_support(made.weight, hessian, mask), rtol=1e-6, atol=1e-7)
    assert not bool(found[~mask].any())


def test_where_it_starts_does_not_matter_in_the_end() -> None:
    made = layer(4, 16)
    mask = torch.rand(4, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    hessian = damped(made.gram, 0.01)
    ends = [
        least_squares(
            start.double(), original=made.weight.double(), gram=hessian, mask=mask, iterations=500, tolerance=1e-10
        )
        for start in (torch.zeros(4, 16), made.weight, torch.ones(4, 16))
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-6, atol=1e-7)


def test_rows_without_weights_or_without_pruning_are_left_alone() -> None:
    made = layer(3, 8)
    mask = torch.tensor([[False] * 8, [True] * 8, [True] * 4 + [False] * 4])
    found = least_squares(made.weight, original=made.weight, gram=made.gram, mask=mask)
    assert not bool(found[0].any())
    torch.testing.assert_close(found[1], made.weight[1])


def test_more_steps_never_make_it_worse() -> None:
    made = layer(6, 20)
    mask = torch.rand(6, 20, generator=torch.Generator().manual_seed(1)) < 0.4
    hessian = damped(made.gram, 0.01)
    losses = []
    for iterations in range(0, 12, 2):
        found = least_squares(
            made.weight.double(), original=made.weight.double(), gram=hessian, mask=mask, iterations=iterations
        )
        change = found - made.weight.double()
        losses.append(float((change @ hessian * change).sum()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
