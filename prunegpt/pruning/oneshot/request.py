"""What one call of one-shot pruning was asked for, checked before anything is run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunegpt.errors import PruningError, unknown
from prunegpt.lm.views import WeightView
from prunegpt.pruning.criteria.base import Criterion
from prunegpt.pruning.patterns import Pattern, parse_pattern
from prunegpt.pruning.selection import Scope
from prunegpt.pruning.solvers.base import Solver, option_names
from prunegpt.registry import CRITERIA, SOLVERS

ACTIVATIONS = frozenset({"input_norm", "gram"})
GRADIENTS = frozenset({"gradient", "squared_gradient", "gradients"})


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        part: the criterion or solver.
        pattern: the shape of sparsity.
        targets: parameter name -> sparsity.
        scope: what scores are compared over.
        options: further arguments of the method.
        propagate: whether blocks see the outputs of pruned blocks.
        notes: where the request could not be met as it was made.
    """

    part: Criterion | Solver
    pattern: Pattern
    targets: Mapping[str, float]
    scope: Scope
    options: Mapping[str, Any]
    propagate: bool
    notes: tuple[str, ...]


def check_request(
    views: Mapping[str, WeightView],
    *,
    method: str,
    sparsity: float | None,
    pattern: Pattern | str,
    allocation: str | Mapping[str, float] | None,
    options: Mapping[str, Any],
    propagate: bool,
) -> Request:
    """The request, if it goes with the views and with itself.

    Raises:
        PruningError: it does not.
    """
    part = _part(method)
    shape = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    scope = _scope(part, allocation)
    _check_options(part, options)
    notes: tuple[str, ...] = ()
    if scope == "global" and propagate and part.needs & ACTIVATIONS:
        propagate = False
        notes = ("global compares the scores of all layers, so all were scored on the dense model",)
    targets = _targets(views, shape, sparsity, allocation)
    return Request(part, shape, targets, scope, dict(options), propagate, notes)


def _part(name: str) -> Criterion | Solver:
    if name not in CRITERIA and name not in SOLVERS:
        raise PruningError(unknown("pruning method", name, [*CRITERIA.names(), *SOLVERS.names()]))
    part: Criterion | Solver = (SOLVERS if name in SOLVERS else CRITERIA).load(name)
    if "movement" in part.needs:
        raise PruningError(
            f"{name} looks at how weights move in training, so it cannot prune in one shot. Use it as the criterion of "
            f"finetune.prune, or choose another method here, such as magnitude or taylor."
        )
    return part


def _targets(
    views: Mapping[str, WeightView],
    pattern: Pattern,
    sparsity: float | None,
    allocation: str | Mapping[str, float] | None,
) -> dict[str, float]:
    """The sparsity of each view."""
    if not views:
        raise PruningError("one-shot pruning needs at least one layer, but got none. Widen the targets.")
    if not isinstance(allocation, Mapping):
        return dict.fromkeys(views, pattern.target(sparsity))
    missing = [name for name in views if name not in allocation]
    strange = [name for name in allocation if name not in views]
    if missing or strange:
        raise PruningError(
            f"an allocation must give a sparsity to each layer that is pruned and to no other, but {len(missing)} are "
            f"missing and {len(strange)} are not pruned; the first is {(missing + strange)[0]}. "
            f"Names are those of parameters (prunegpt.pruning.allocation.explicit takes patterns)."
        )
    return {name: pattern.target(allocation[name]) for name in views}


def _scope(part: Criterion | Solver, allocation: str | Mapping[str, float] | None) -> Scope:
    """What a method compares."""
    if isinstance(allocation, str) and allocation not in ("uniform", "row", "global"):
        raise PruningError(
            f"an allocation is uniform, row, global, or the sparsity of each layer by name, but got {allocation!r}. "
            f"Compute owl and sensitivity first (prunegpt.pruning.allocation) and give what they return."
        )
    if isinstance(part, Solver):
        if allocation in ("row", "global"):
            raise PruningError(
                f"{part.name} chooses weights within a layer while it solves, so it cannot compare by {allocation}. "
                f"Use uniform, owl or sensitivity."
            )
        return "tensor"
    if allocation == "global":
        return "global"
    return "row" if allocation == "row" or (allocation != "uniform" and part.rowwise) else "tensor"


def _check_options(part: Criterion | Solver, options: Mapping[str, Any]) -> None:
    valid = part.options if isinstance(part, Solver) else option_names(part.score, {"weight", *part.needs})
    for name in options:
        if name not in valid:
            raise PruningError(unknown(f"option of {part.name}", name, valid))
