"""What one call of one-shot pruning was asked for, checked before anything is run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunegpt.errors import PruningError
from prunegpt.lm.views import WeightView, named
from prunegpt.pruning.criteria.base import Criterion
from prunegpt.pruning.job import load_method
from prunegpt.pruning.patterns import Pattern, parse_pattern
from prunegpt.pruning.refining.base import Refinement
from prunegpt.pruning.solvers.base import Solver
from prunegpt.registry import ACTIVATIONS, Scope
from prunegpt.spec.code import method_label
from prunegpt.spec.methods import method_entry, scope_of
from prunegpt.spec.patterns import read_pattern
from prunegpt.spec.pruning import refuse, request_problems


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
    refine: Refinement | None,
) -> Request:
    """The request, if it goes with the views and with itself.

    Raises:
        PruningError: it does not.
    """
    entry = method_entry(method)
    shape = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    if isinstance(allocation, str) and allocation not in ("uniform", "row", "global"):
        raise PruningError(
            f"an allocation is uniform, row, global, or the sparsity of each layer by name, got {allocation!r}. "
            "Compute owl and sensitivity first (prunegpt.pruning.allocation) and give what they return."
        )
    targets = _targets(views, shape, sparsity, allocation)
    written, chosen = read_pattern(shape.name), named(views)
    given = {**options, **(refine.options if refine else {})}
    refuse(
        request_problems(
            method_label(method),
            entry,
            allocation,
            written,
            sparsity,
            given,
            chosen,
            training=False,
            refine=refine.name if refine else None,
        )
    )
    scope = scope_of(entry, allocation)
    notes: tuple[str, ...] = ()
    if scope == "global" and propagate and entry.needs & ACTIVATIONS:
        propagate = False
        notes = ("global compares the scores of all layers, so all were scored on the dense model",)
    part = load_method(method)
    return Request(part, shape, targets, scope, dict(options), propagate, notes)


def _targets(
    views: Mapping[str, WeightView],
    pattern: Pattern,
    sparsity: float | None,
    allocation: str | Mapping[str, float] | None,
) -> dict[str, float]:
    """The sparsity of each view."""
    if not views:
        raise PruningError("one-shot pruning needs at least one layer, got none. Widen the targets.")
    if not isinstance(allocation, Mapping):
        return dict.fromkeys(views, pattern.target(sparsity))
    missing = [name for name in views if name not in allocation]
    strange = [name for name in allocation if name not in views]
    if missing or strange:
        raise PruningError(
            f"an allocation must give a sparsity to each layer that is pruned and to no other; {len(missing)} are "
            f"missing and {len(strange)} are not pruned; the first is {(missing + strange)[0]}. Names are those of "
            "parameters (prunegpt.pruning.allocation.explicit takes patterns)."
        )
    return {name: pattern.target(allocation[name]) for name in views}
