"""What the check lets pass runs: every option at both ends of its range gives numbers that are finite."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from prunegpt.pruning.allocation.owl import outlier_ratio
from prunegpt.pruning.patterns import Unstructured
from prunegpt.registry import ALLOCATIONS, CRITERIA, MASK_MODES, REFINEMENTS, SOLVERS, Registry
from prunegpt.spec.schedules import Clock
from tests.pruning.solvers.layers import layer
from tests.support.criteria import needed_by, weight_of
from tests.support.mask_runs import Run
from tests.support.options import at_ends
from tests.support.toys import Toy

KINDS = (CRITERIA, SOLVERS, REFINEMENTS, MASK_MODES, ALLOCATIONS)
CASES = [(registry, *case) for registry in KINDS for case in at_ends(registry)]
assert {registry.kind for registry, *_ in CASES} >= {registry.kind for registry in KINDS[1:]}
SIZES = {"a.weight": 40, "b.weight": 60, "c.weight": 100}


def scores(name: str, options: dict[str, Any]) -> list[Tensor]:
    criterion = CRITERIA.load(name)
    return [criterion.score(weight_of(), **needed_by(criterion), **options)]


def solved(name: str, options: dict[str, Any]) -> list[Tensor]:
    solver, made = SOLVERS.load(name), layer(10, 24)
    needed = {"gram": made.gram, "gradients": made.gradients}
    given = {need: needed[need] for need in solver.needs}
    return [solver.solve(made.weight, sparsity=0.5, pattern=Unstructured(), mask=None, **given, **options).weight]


def refined(name: str, options: dict[str, Any]) -> list[Tensor]:
    made = layer(10, 24)
    mask = Unstructured().select(made.weight.abs(), 0.5)
    known = {"gram": made.gram, "input_norm": made.inputs.norm(dim=0), "input_mean": made.inputs.mean(dim=0)}
    known["input_variance"] = made.inputs.var(dim=0)
    given = {need: known[need] for need in REFINEMENTS.entry(name).needs}
    found = REFINEMENTS.load(name)(made.weight, mask, group=24, held=None, **given, **options)
    assert torch.equal(found.sum(dim=1), mask.sum(dim=1))
    return [found]


def trained(name: str, options: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(0)
    run = Run(Toy(), clock=Clock.regular(2, 9, 2), final=0.6, schedule="constant", mode=name, mode_options=options)
    run.steps(range(12))
    return list(run.toy.parameters())


def shares(name: str, options: dict[str, Any]) -> list[Tensor]:
    entry = ALLOCATIONS.entry(name)
    own = {option: value for option, value in options.items() if option in entry.options}
    multiple = {option: value for option, value in options.items() if option not in entry.options}
    drawn = [torch.rand(4, 5, generator=Generator().manual_seed(seed)) for seed in range(3)]
    known = {
        "blocks": dict(zip(SIZES, range(3), strict=True)),
        "outlier_ratios": {block: outlier_ratio([drawn[block]], **multiple) for block in range(3)},
        "median_scores": {block: float(drawn[block].median()) for block in range(3)},
    }
    given = {need: known[need] for need in entry.needs}
    found = torch.tensor(list(ALLOCATIONS.load(name)(SIZES, 0.6, **given, **own).values()), dtype=torch.float64)
    sizes = torch.tensor(list(SIZES.values()), dtype=torch.float64)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert float(found @ sizes / sizes.sum()) == pytest.approx(0.6, abs=1e-6)
    return [found]


MADE: dict[str, Callable[[str, dict[str, Any]], list[Tensor]]] = {
    CRITERIA.kind: scores,
    SOLVERS.kind: solved,
    REFINEMENTS.kind: refined,
    MASK_MODES.kind: trained,
    ALLOCATIONS.kind: shares,
}


@pytest.mark.parametrize(
    ("registry", "name", "option", "value"),
    CASES,
    ids=lambda value: value.kind if isinstance(value, Registry) else str(value),
)
def test_an_option_at_an_end_of_its_range_runs(registry: Registry, name: str, option: str, value: float) -> None:
    for tensor in MADE[registry.kind](name, {option: value}):
        assert bool(torch.isfinite(tensor).all())
