"""How a pruning spec spends its sparsity over a model's tensors, for one-shot and gradual pruning alike."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.lm.views import WeightView, outline
from prunegpt.pruning.allocation.dlp import median_score
from prunegpt.pruning.allocation.owl import outlier_ratio
from prunegpt.pruning.criteria.wanda import wanda
from prunegpt.pruning.statistics.collect import block_statistics, evaluating
from prunegpt.registry import ALLOCATIONS, Scope
from prunegpt.spec import methods
from prunegpt.spec.methods import allocation_entry, allocation_options
from prunegpt.spec.methods import method_options as method_options
from prunegpt.spec.patterns import fixed_sparsity
from prunegpt.spec.schema import PruneSpec
from prunegpt.stages.base import ModelState


def scope_of(spec: PruneSpec) -> Scope:
    """What scores are compared over."""
    return methods.scope_of(methods.method_entry(spec.method), spec.allocation)


def sparsities_of(
    spec: PruneSpec,
    state: ModelState,
    views: Mapping[str, WeightView],
    calibration: Tensor | None,
    *,
    place: torch.device | None = None,
) -> dict[str, float] | None:
    """Parameter name -> sparsity, where the allocation gives each tensor its own; None where all have the same.

    Every allocation goes this way, built in or plugged in: what it needs is put together, and its function called.

    Args:
        place: where decoder layers are run, one at a time, if not where the model is.

    Raises:
        PruningError: a pattern matches nothing, or the allocation lacks what it needs.
    """
    entry = allocation_entry(spec.allocation)
    if spec.allocation is None or entry.scope is not None:
        return None
    name = spec.allocation if isinstance(spec.allocation, str) else "explicit"
    wanted = spec.sparsity if spec.sparsity is not None else fixed_sparsity(spec.pattern)
    if wanted is None and not isinstance(spec.allocation, Mapping):
        raise PruningError(f"allocation {name} spreads a sparsity; none is given. Set sparsity.")
    options = allocation_options(spec)
    gathered: Mapping[str, Callable[[], Any]] = {
        "sparsities": lambda: spec.allocation,
        "blocks": lambda: {name: view.block for name, view in views.items()},
        "outlier_ratios": lambda: _of_scores(
            state, views, calibration, place, partial(outlier_ratio, **_of(options, "multiple"))
        ),
        "median_scores": lambda: _of_scores(state, views, calibration, place, median_score),
        "curves": lambda: _curves(spec),
    }
    allotted: dict[str, float] = ALLOCATIONS.load(name)(
        {name: view.matrix.numel() for name, view in views.items()},
        0.0 if wanted is None else wanted,
        **{need: gathered[need]() for need in sorted(entry.needs)},
        **_of(options, *entry.options),
    )
    if missing := sorted(set(views) - set(allotted)):
        raise PruningError(
            f"an allocation must give the sparsity of every pruned tensor; {name} gives none to {missing[0]}. Fix the "
            "package that declares it."
        )
    return allotted


def _of(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _of_scores(
    state: ModelState,
    views: Mapping[str, WeightView],
    calibration: Tensor | None,
    place: torch.device | None,
    function: Callable[[list[Tensor]], float],
) -> dict[int, float]:
    """Decoder layer -> what a function makes of the scores |W| · ||X|| of its matrices, of the dense model."""
    if calibration is None:
        raise PruningError("scores of decoder layers are of activations; there is no calibration data.")
    found: dict[int, float] = {}
    with torch.no_grad(), evaluating(state.model):
        for group in block_statistics(state.model, views, calibration, gram=False, propagate=False, place=place):
            scores: dict[int, list[Tensor]] = {}
            for name, inputs in group.items():
                block = views[name].block
                if block is not None and inputs is not None:
                    scores.setdefault(block, []).append(wanda(views[name].matrix, input_norm=inputs.input_norm))
            found |= {block: function(tensors) for block, tensors in scores.items()}
    return found


def _curves(spec: PruneSpec) -> Mapping[str, Any]:
    if not spec.curves:
        raise PruningError(
            "allocation sensitivity needs the measured curve of each block: name the sweep that measured them in "
            "options.sweep, and run that sweep first."
        )
    return spec.curves


def coverage_notes(spec: PruneSpec, state: ModelState, views: Mapping[str, WeightView]) -> tuple[str, ...]:
    """What a request that names no tensors leaves dense, where that is more than a little."""
    if spec.names_tensors:
        return ()
    note = outline(state.model).coverage(views).note
    return (note,) if note else ()
