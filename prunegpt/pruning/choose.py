"""What a method makes of layers, in one shot or at an update in training: which weights go, what repairs the rest."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from prunegpt.lm.device import SINGLE
from prunegpt.lm.views import WeightView
from prunegpt.pruning.bisection import checked_together
from prunegpt.pruning.criteria.base import Criterion
from prunegpt.pruning.evidence import SINGLE_ONES, Evidence
from prunegpt.pruning.patterns import Pattern
from prunegpt.pruning.refining.base import Refinement
from prunegpt.pruning.selection import select_masks
from prunegpt.pruning.solvers.base import Solver, reconstruction_error
from prunegpt.registry import Scope

Select = Callable[..., dict[str, Tensor]]  # called as select_masks is
Groups = Iterable[Mapping[str, Evidence]]  # parameter name -> what is known, the layers of a decoder layer at a time


@dataclass(frozen=True, eq=False)
class Choice:
    """What became of one layer.

    Attributes:
        name: of the parameter.
        mask: bool [out, in], True = kept.
        error: the share of the layer's output that is lost on the calibration data; None where no Gram matrix is known.
        damping: the solver's; None for a criterion.
        seconds: to choose and to solve, without calibration; an even share where all layers are selected at once.
        notes: what the user should know of.
    """

    name: str
    mask: Tensor
    error: float | None
    damping: float | None
    seconds: float
    notes: tuple[str, ...] = ()


def choose(
    part: Criterion | Solver,
    groups: Groups,
    *,
    targets: Mapping[str, float],
    pattern: Pattern,
    scope: Scope,
    masks: Mapping[str, Tensor],
    options: Mapping[str, Any],
    gathered: Callable[[str], Mapping[str, Tensor]] = lambda _: {},
    scored: Callable[[WeightView], Tensor] = attrgetter("matrix"),
    select: Select = select_masks,
    refine: Refinement | None = None,
) -> Iterator[Choice]:
    """Masks of layers, each before the next one is asked for; with scope `global` all after the last.

    A solver writes the weights that it repairs into the layer; what a criterion chooses is left to the caller to apply.

    Args:
        part: the criterion or solver.
        groups: layers in the order in which they are pruned.
        targets: parameter name -> sparsity, in the order of the model, which decides ties between layers.
        pattern: what is pruned as one.
        scope: what scores are compared over.
        masks: parameter name -> bool [out, in], True = kept: what is pruned stays pruned. Names may be missing.
        options: further arguments of the method.
        gathered: what training has shown of a layer, by the name of the argument.
        scored: the weights [out, in] that a criterion scores, whole.
        select: from scores to masks, as :func:`~prunegpt.pruning.selection.select_masks`.
        refine: what betters the mask of each layer; not with scope `global`.

    Raises:
        PruningError: scores or statistics are not finite, or something does not go together.
    """
    scores: dict[str, Tensor] = {}
    notes: dict[str, tuple[str, ...]] = {}
    seconds = 0.0
    for group in groups:
        factors: dict[int, Any] = {}  # by the Gram matrix, of which the group holds on to one a distinct input
        for name, found in group.items():
            started = perf_counter()
            if isinstance(part, Solver) and not found.unseen:
                yield _solved(part, name, found, factors, targets[name], pattern, masks.get(name), options, started)
                continue
            matrix = scored(found.view)  # [out, in]
            if isinstance(part, Solver) or found.unseen:
                score = matrix.abs()  # [out, in]
            else:
                score = part.score(matrix, **found.arguments(part.needs), **gathered(name), **options)  # [out, in]
            if scope == "global":
                scores[name], notes[name] = score, found.notes
                seconds += perf_counter() - started
                continue
            held = {name: masks[name].to(score.device)} if name in masks else {}
            mask = select({name: score}, targets, pattern=pattern, scope=scope, masks=held)[name]  # [out, in]
            if refine is not None and not found.unseen:
                given = found.arguments(refine.needs)
                mask = refine(matrix, mask, pattern=pattern, held=held.get(name), **given)  # [out, in]
            error = None
            if found.gram is not None and not found.unseen:
                error = reconstruction_error(matrix * mask, matrix, found.gram.to(matrix.device))
            yield Choice(name, mask, error, None, perf_counter() - started, found.notes)
        factors.clear()  # before the next group is calibrated
    if scores:
        started = perf_counter()
        ordered = {name: scores[name] for name in targets}
        chosen = select(ordered, targets, pattern=pattern, scope=scope, masks=masks)
        seconds += perf_counter() - started
        for name, mask in chosen.items():
            yield Choice(name, mask, None, None, seconds / len(chosen), notes[name])


def _solved(
    solver: Solver,
    name: str,
    found: Evidence,
    factors: dict[int, Any],
    sparsity: float,
    pattern: Pattern,
    mask: Tensor | None,
    options: Mapping[str, Any],
    started: float,
) -> Choice:
    place = found.view.matrix.device
    home = torch.device("cpu") if place.type in SINGLE else place  # solvers need float64
    given = {
        need: value.to(home) if isinstance(value, Tensor) and need != SINGLE_ONES else value
        for need, value in found.arguments(solver.needs).items()
    }
    if solver.factorise is not None:
        if id(found.gram) not in factors:
            factors[id(found.gram)] = solver.factor_of(given["gram"], options)
        given["factor"] = factors[id(found.gram)]
    matrix = found.view.matrix  # [out, in]
    held = None if mask is None else mask.to(home)
    with checked_together():
        solution = solver.solve(matrix.to(home), sparsity=sparsity, pattern=pattern, mask=held, **given, **options)
    matrix.copy_(solution.weight)
    seconds = perf_counter() - started
    return Choice(
        name, solution.mask.to(place), solution.error, solution.damping, seconds, (*found.notes, *solution.notes)
    )
