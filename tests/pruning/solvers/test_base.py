"""Counts and errors that all solvers share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunegpt.errors import PruningError
from prunegpt.pruning.patterns import Block, NOfM, Unstructured
from prunegpt.pruning.solvers.base import Solution, Solver, quotas, reconstruction_error, target_zeros
from prunegpt.registry import SOLVERS
from tests.pruning.solvers.layers import layer, output_error


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_quotas_are_exact_in_sum_and_respect_what_is_pruned(groups: list[tuple[int, float]], sparsity: float) -> None:
    sizes = [size for size, _ in groups]
    pruned = [round(size * share) for size, share in groups]
    zeros = round(sum(sizes) * sparsity)
    counts = quotas(sizes, pruned, zeros)
    assert sum(counts) == max(zeros, sum(pruned))
    assert all(before <= count <= size for before, count, size in zip(pruned, counts, sizes, strict=True))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(0, 1))
def test_without_pruned_weights_every_group_is_within_one_of_its_share(sizes: list[int], sparsity: float) -> None:
    zeros = round(sum(sizes) * sparsity)
    share = zeros / sum(sizes)
    for count, size in zip(quotas(sizes, [0] * len(sizes), zeros), sizes, strict=True):
        assert abs(count - share * size) <= 1


def test_a_full_group_leaves_the_rest_to_the_others() -> None:
    assert quotas([10, 10, 10], [9, 0, 0], 15) == [9, 3, 3]
    assert quotas([10, 10], [8, 4], 6) == [8, 4]


def test_the_error_is_that_of_the_outputs() -> None:
    made = layer(6, 10)
    pruned = made.weight * (made.weight.abs() > 0.5)
    assert reconstruction_error(pruned, made.weight, made.gram) == pytest.approx(output_error(pruned, made), rel=1e-4)
    assert reconstruction_error(made.weight, made.weight, made.gram) == 0
    assert reconstruction_error(torch.zeros_like(pruned), made.weight, made.gram) == pytest.approx(1)


def test_zeros_are_those_of_the_pattern_or_the_sparsity() -> None:
    weight = torch.ones(4, 8)
    assert target_zeros("x", weight, 0.75, Unstructured()) == (0.75, 24)
    assert target_zeros("x", weight, None, NOfM(1, 4)) == (0.75, 24)
    with pytest.raises(PruningError, match=r"needs a sparsity between 0 and 1, got none"):
        target_zeros("x", weight, None, Unstructured())
    with pytest.raises(PruningError, match=r"sparsegpt prunes to unstructured and N:M patterns, got \[4, 4\]"):
        target_zeros("sparsegpt", weight, 0.5, Block(4, 4))
    with pytest.raises(PruningError, match=r"full sparsity of 0.5; 0.25 was asked for"):
        target_zeros("x", weight, 0.25, NOfM(2, 4))
    with pytest.raises(PruningError, match=r"input axis divisible by 3"):
        target_zeros("x", weight, None, NOfM(1, 3))


def test_options_are_what_the_pipeline_does_not_give() -> None:
    assert SOLVERS.load("sparsegpt").options == ("damping", "block_size")
    assert "gram" not in SOLVERS.load("admm").options


def test_a_solver_may_only_need_what_there_is() -> None:
    def solve() -> Solution:
        raise AssertionError

    with pytest.raises(ValueError, match=r"asks for \['hessian'\]"):
        Solver("mine", frozenset({"hessian"}), solve)
