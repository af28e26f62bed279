"""SparseGPT against optimal brain surgery with explicit inverses in float64, column by column."""

import pytest
import torch
from torch import Tensor

from prunegpt.pruning.patterns import NOfM, Pattern, Unstructured
from prunegpt.pruning.solvers.base import reconstruction_error
from prunegpt.pruning.solvers.factor import inverse_factor
from prunegpt.pruning.solvers.sparsegpt import sparsegpt
from tests.pruning.solvers.layers import best_on_support, damped, layer

DAMPING = 0.01


def surgery(weight: Tensor, hessian: Tensor, pattern: Pattern, sparsity: float, block: int) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the paper as written: the inverse of what is left of the Hessian is formed anew at each column."""
    rows, width = weight.shape
    current, mask = weight.double().clone(), torch.ones(rows, width, dtype=torch.bool)
    pivots = torch.stack([torch.linalg.inv(hessian[column:, column:])[0, 0] for column in range(width)])  # [in]
    for column in range(width):
        if isinstance(pattern, NOfM) and column % pattern.group == 0:
            span = slice(column, column + pattern.group)
            order = (current[:, span].square() / pivots[span]).argsort(dim=1)  # [out, group]
            mask[:, span].scatter_(1, order[:, : pattern.group - pattern.kept], False)
        elif isinstance(pattern, Unstructured) and column % block == 0:
            span = slice(column, min(column + block, width))
            scores = current[:, span].square() / pivots[span]  # [out, block]
            share = int(round(rows * width * sparsity) * span.stop / width + 0.5)  # of the zeros, up to here
            zeros = share - int((~mask).sum())
            flat = torch.ones(scores.numel(), dtype=torch.bool)
            flat[scores.flatten().argsort()[:zeros]] = False
            mask[:, span] = flat.view_as(scores)
        inverse = torch.linalg.inv(hessian[column:, column:])  # [left, left]
        for row in range(rows):
            if not mask[row, column]:
                current[row, column:] -= current[row, column] / inverse[0, 0] * inverse[:, 0]
                current[row, column] = 0
    return current, mask


@pytest.mark.parametrize("block", [8, 16, 20, 48])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_it_is_optimal_brain_surgery_column_by_column(sparsity: float, block: int) -> None:
    made = layer(6, 48)
    expected, mask = surgery(made.weight, damped(made.gram, DAMPING), Unstructured(), sparsity, block)
    found = sparsegpt(made.weight, gram=made.gram, pattern=Unstructured(), sparsity=sparsity, block_size=block)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.weight.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pattern", [NOfM(2, 4), NOfM(1, 4), NOfM(3, 4), NOfM(4, 8), NOfM(1, 3)])
def test_groups_are_chosen_from_the_weights_as_they_are_by_then(pattern: NOfM) -> None:
    made = layer(6, 48)
    expected, mask = surgery(made.weight, damped(made.gram, DAMPING), pattern, pattern.sparsity, 48)
    found = sparsegpt(made.weight, gram=made.gram, pattern=pattern)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.weight.double(), expected, rtol=1e-3, atol=1e-3)


def test_the_choice_in_a_group_is_not_that_of_the_first_weights() -> None:
    made = layer(16, 64)
    pivots = inverse_factor(made.gram).upper.diagonal()  # [in]
    at_once = NOfM(2, 4).select((made.weight / pivots).square())
    assert not torch.equal(sparsegpt(made.weight, gram=made.gram, pattern=NOfM(2, 4)).mask, at_once)


def test_one_pruned_weight_a_row_is_made_up_for_by_the_exact_least_squares_of_what_follows_it() -> None:
    made = layer(5, 12)
    columns = torch.tensor([0, 3, 7, 10, 11])
    weight = made.weight.sign() + made.weight
    weight[range(5), columns] *= 1e-3  # the one that goes in each row
    found = sparsegpt(weight, gram=made.gram, pattern=Unstructured(), sparsity=1 / 12)
    assert (~found.mask).nonzero().tolist() == [[row, int(column)] for row, column in enumerate(columns)]
    free = torch.arange(12) > columns.unsqueeze(1)  # [out, in]
    expected = best_on_support(weight, damped(made.gram, DAMPING), found.mask, free)
    torch.testing.assert_close(found.weight.double(), expected, rtol=1e-4, atol=1e-6)


def test_pruned_columns_in_front_are_made_up_for_by_the_exact_least_squares_of_all_others() -> None:
    made = layer(5, 16)
    weight = made.weight.sign() + made.weight
    weight[:, :4] *= 1e-3
    found = sparsegpt(weight, gram=made.gram, pattern=Unstructured(), sparsity=4 / 16)
    assert not bool(found.mask[:, :4].any())
    expected = best_on_support(weight, damped(made.gram, DAMPING), found.mask)
    torch.testing.assert_close(found.weight.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_the_ends_of_the_range(sparsity: float) -> None:
    made = layer(4, 8)
    found = sparsegpt(made.weight, gram=made.gram, pattern=Unstructured(), sparsity=sparsity)
    torch.testing.assert_close(found.weight, made.weight * (1 - sparsity))
    assert found.error == pytest.approx(sparsity)


def test_a_pruned_weight_is_not_made_up_for_again() -> None:
    """50 % and then 70 % with the mask: the second call takes the pruned layer for the original."""
    made = layer(16, 64)
    first = sparsegpt(made.weight, gram=made.gram, pattern=Unstructured(), sparsity=0.5)
    again = sparsegpt(first.weight, gram=made.gram, pattern=Unstructured(), sparsity=0.5, mask=first.mask)
    assert torch.equal(again.mask, first.mask)
    torch.testing.assert_close(again.weight, first.weight)
    assert again.error == 0
    more = sparsegpt(first.weight, gram=made.gram, pattern=Unstructured(), sparsity=0.7, mask=first.mask)
    assert not bool((more.mask & ~first.mask).any())
    assert int((~more.mask).sum()) == round(16 * 64 * 0.7)
    assert reconstruction_error(more.weight, made.weight, made.gram) < 1


def test_a_given_factor_changes_nothing() -> None:
    made = layer(8, 24)
    factor = inverse_factor(made.gram, damping=0.05)
    alone = sparsegpt(made.weight, gram=made.gram, pattern=Unstructured(), sparsity=0.5, damping=0.05)
    shared = sparsegpt(made.weight, gram=made.gram, pattern=Unstructured(), sparsity=0.5, factor=factor)
    assert torch.equal(alone.weight, shared.weight)
    assert (alone.damping, shared.damping) == (0.05, 0.05)
