"""Every solver, built in or plugged in, passes these."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunegpt.errors import PruningError
from prunegpt.lm.views import WeightView
from prunegpt.pruning.patterns import Block, NOfM, Pattern, Unstructured
from prunegpt.pruning.solvers.base import NEEDS, Solution, Solver
from prunegpt.registry import SOLVERS
from tests.pruning.solvers.layers import Layer, layer

NAMES = SOLVERS.names()
OUT, IN = 10, 24
CASES: list[tuple[Pattern, float | None]] = [
    (Unstructured(), 0.0),
    (Unstructured(), 0.37),
    (Unstructured(), 0.5),
    (Unstructured(), 0.9),
    (Unstructured(), 1.0),
    (NOfM(2, 4), None),
    (NOfM(1, 4), 0.75),
    (NOfM(5, 8), None),
]


def test_there_are_solvers() -> None:
    assert {"sparsegpt", "admm", "obert"} <= set(NAMES)


@pytest.fixture(params=NAMES)
def solver(request: pytest.FixtureRequest) -> Solver:
    loaded: Solver = SOLVERS.load(request.param)
    return loaded


@pytest.fixture
def made() -> Layer:
    return layer(OUT, IN)


def solve(solver: Solver, made: Layer, weight: Tensor | None = None, **given: Any) -> Solution:
    needed = {"gram": made.gram, "gradients": made.gradients}
    weight = made.weight if weight is None else weight
    given = {"pattern": Unstructured(), "sparsity": 0.5, "mask": None, **given}
    return solver.solve(weight, **{need: needed[need] for need in solver.needs}, **given)


def test_it_is_called_what_it_is_registered_as(solver: Solver) -> None:
    assert SOLVERS.load(solver.name) is solver
    assert solver.needs <= NEEDS
    assert not set(solver.options) & {"weight", "gram", "gradients", "mask", "pattern", "sparsity", "factor"}


@pytest.mark.parametrize(("pattern", "sparsity"), CASES)
def test_shapes_zeros_and_counts(solver: Solver, made: Layer, pattern: Pattern, sparsity: float | None) -> None:
    found = solve(solver, made, pattern=pattern, sparsity=sparsity)
    assert (found.weight.shape, found.weight.dtype) == ((OUT, IN), torch.float32)
    assert (found.mask.shape, found.mask.dtype) == ((OUT, IN), torch.bool)
    assert found.weight.is_contiguous()
    assert torch.equal(found.weight != 0, found.mask)
    assert int((~found.mask).sum()) == round(OUT * IN * pattern.target(sparsity))
    assert bool(torch.isfinite(found.weight).all())
    pattern.check(found.mask)
    if isinstance(pattern, NOfM):
        assert bool((found.mask.view(OUT, -1, pattern.group).sum(dim=2) == pattern.kept).all())


@pytest.mark.parametrize(("pattern", "sparsity"), CASES)
def test_the_error_lies_between_nothing_and_everything(
    solver: Solver, made: Layer, pattern: Pattern, sparsity: float | None
) -> None:
    error = solve(solver, made, pattern=pattern, sparsity=sparsity).error
    assert 0 <= error <= 1 + 1e-6
    assert (error < 1e-9) == (sparsity == 0.0)


def test_survivors_are_repaired(solver: Solver, made: Layer) -> None:
    found = solve(solver, made)
    assert not torch.allclose(found.weight[found.mask], made.weight[found.mask], atol=1e-3)


@pytest.mark.parametrize("shape", [(OUT, IN), (1, IN), (OUT, 4)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("pattern", [Unstructured(), NOfM(2, 4)])
def test_nothing_it_is_given_changes(
    solver: Solver, shape: tuple[int, int], transposed: bool, pattern: Pattern
) -> None:
    made = layer(*shape)
    weight = made.weight.t().contiguous().t() if transposed else made.weight
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.8
    mask = mask.t().contiguous().t() if transposed else mask
    given = {need: {"gram": made.gram, "gradients": made.gradients}[need] for need in solver.needs}
    before = [tensor.clone() for tensor in (weight, mask, *given.values())]
    solver.solve(weight, pattern=pattern, sparsity=0.5, mask=mask, **given)
    for tensor, copy in zip((weight, mask, *given.values()), before, strict=True):
        assert torch.equal(tensor, copy)


def test_it_is_deterministic(solver: Solver, made: Layer) -> None:
    first, second = solve(solver, made), solve(solver, made)
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("pattern", [Unstructured(), NOfM(2, 4)])
def test_a_conv1d_is_pruned_like_its_linear_twin(solver: Solver, made: Layer, pattern: Pattern) -> None:
    linear, conv = nn.Linear(IN, OUT), Conv1D(OUT, IN)
    linear.weight.data.copy_(made.weight)
    conv.weight.data.copy_(made.weight.t())
    views = [WeightView("w", linear.weight, linear, False, 0), WeightView("w", conv.weight, conv, True, 0)]
    twin, own = (solve(solver, made, weight=view.matrix, pattern=pattern) for view in views)
    assert torch.equal(twin.mask, own.mask)
    torch.testing.assert_close(twin.weight, own.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_solved_in_float32(solver: Solver, made: Layer, dtype: torch.dtype) -> None:
    half = made.weight.to(dtype)
    found, same = solve(solver, made, weight=half), solve(solver, made, weight=half.float())
    assert found.weight.dtype == torch.float32
    assert torch.equal(found.weight, same.weight)


@pytest.mark.parametrize(("pattern", "first", "then"), [(Unstructured(), 0.5, 0.7), (NOfM(2, 4), 0.3, 0.5)])
def test_what_is_pruned_stays_pruned_and_counts(
    solver: Solver, made: Layer, pattern: Pattern, first: float, then: float
) -> None:
    """From 50 to 70 %, and from the weights that 2:4 prunes first to all of them."""
    held = pattern.select(made.weight.abs(), first)
    for weight in (made.weight * held, made.weight):  # a pruned weight counts as zero whatever it is
        found = solve(solver, made, weight=weight, pattern=pattern, sparsity=then, mask=held)
        assert not bool((found.mask & ~held).any())
        assert not bool(found.weight[~found.mask].any())
        assert int((~found.mask).sum()) == round(OUT * IN * then)


def test_a_mask_that_is_sparser_than_asked_is_kept(solver: Solver, made: Layer) -> None:
    held = Unstructured().select(made.weight.abs(), 0.8)
    found = solve(solver, made, sparsity=0.5, mask=held)
    assert torch.equal(found.mask, held)
    torch.testing.assert_close(found.weight, made.weight * held, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pattern", [Unstructured(), NOfM(2, 4)])
def test_dead_inputs_go_first_and_trouble_nobody(solver: Solver, pattern: Pattern) -> None:
    made = layer(OUT, IN)
    dead = [0, 7, 23]
    made.inputs[:, dead] = 0
    made.weight[:, dead] *= 100
    found = solve(solver, made, pattern=pattern)
    assert bool(torch.isfinite(found.weight).all())
    if "gram" in solver.needs:
        assert not bool(found.mask[:, dead].any())
        assert any("3 of 24 inputs are zero" in note for note in found.notes)
        barely = solve(solver, made, sparsity=0.01)  # fewer zeros than dead weights
        assert int((~barely.mask).sum()) == round(OUT * IN * 0.01)
        assert barely.error < 1e-5
        left = barely.mask[:, dead]  # what no zeros were left for stays as it was
        torch.testing.assert_close(barely.weight[:, dead][left], made.weight[:, dead][left])


def test_a_nearly_singular_problem_is_solved_and_reported(solver: Solver) -> None:
    made = layer(OUT, IN, tokens=36)
    made.inputs[:] = made.inputs[:, :1]  # all inputs alike
    found = solve(solver, made, damping=0.0)
    assert found.damping > 0
    assert any(note.startswith("damping raised from 0 to ") for note in found.notes)
    assert bool(torch.isfinite(found.weight).all())
    assert solve(solver, made, damping=0.01).damping == 0.01


def test_numbers_that_are_not_finite_are_refused(solver: Solver, made: Layer) -> None:
    made.inputs[0, 0] = torch.nan
    with pytest.raises(PruningError, match=r"must be finite"):
        solve(solver, made)


def test_what_it_cannot_do_is_refused(solver: Solver, made: Layer) -> None:
    with pytest.raises(PruningError, match=rf"{solver.name} prunes to unstructured and N:M patterns"):
        solve(solver, made, pattern=Block(2, 2))
    with pytest.raises(PruningError, match=r"sparsity must be between 0 and 1, got 50. Did you mean 0.5"):
        solve(solver, made, sparsity=50)
    with pytest.raises(PruningError, match=r"input axis divisible by 5"):
        solve(solver, made, pattern=NOfM(2, 5), sparsity=None)
    with pytest.raises(PruningError, match=r"damping is a share of the mean diagonal between 0 and 1, got -1"):
        solve(solver, made, damping=-1.0)


def test_a_factor_stands_for_the_gram_of_layers_with_the_same_input(solver: Solver, made: Layer) -> None:
    if solver.factorise is None:
        pytest.skip(f"{solver.name} shares nothing between layers")
    factor = solver.factor_of(made.gram, {"damping": 0.02, "block_size": 8})
    alone, shared = solve(solver, made, damping=0.02), solve(solver, made, factor=factor)
    assert torch.equal(alone.weight, shared.weight)
    assert shared.damping == 0.02
