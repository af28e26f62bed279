"""One-shot pruning of the model a stage is given."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from prunegpt.errors import Interrupted, PruningError, StreamingError
from prunegpt.lm.device import free_memory
from prunegpt.lm.views import matrices, memory_sizes, outline, select
from prunegpt.planning.inputs import Inputs
from prunegpt.planning.memory import Memory
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import check, fingerprints
from prunegpt.pruning.oneshot import OnLayer, SolvedLayers, prune_oneshot
from prunegpt.pruning.patterns import Block, parse_pattern
from prunegpt.pruning.refining.base import Refinement
from prunegpt.records import CALIBRATED, LAYERS_PRUNED, TOTAL_STEPS
from prunegpt.root import Root
from prunegpt.spec.code import method_label
from prunegpt.spec.methods import refine_options, statistics_of
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.pruning import prune_problems, refuse
from prunegpt.spec.schema import PruneSpec
from prunegpt.spec.streaming import unstreamed
from prunegpt.stages import text
from prunegpt.stages.base import ModelState, Pruned, Result, StageContext
from prunegpt.stages.budget import coverage_notes, method_options, sparsities_of

_POINTS = 200  # of the curve of one stage: a mixture of experts may have thousands of layers


def prune(plan: StagePlan, state: ModelState, setting: StageContext) -> Result:
    """Prunes once, from what an earlier attempt has solved; what earlier stages pruned stays pruned and counts."""
    assert plan.prune is not None
    layers = [0, 0]  # pruned, and in all

    def progress(done: int, total: int, name: str) -> None:
        layers[:] = [done, total]
        if not name:
            print(f"  resuming after {done} of {total}" if done else f"  pruning {total} matrices", flush=True)
            setting.emit(done, 0.0, TOTAL_STEPS, total, 0)
            return
        print(f"  pruned {done} of {total}: {name}", flush=True)
        if done % -(-total // _POINTS) == 0 or done == total:
            setting.emit(done, 0.0, LAYERS_PRUNED, done, 0)

    def calibrated(done: int, total: int) -> None:
        setting.emit(done - total, 0.0, CALIBRATED, done / total, 0)  # steps before the first
        if done == total:  # the pace of pruning is counted from here
            print(f"  calibrated after {done} of {total}", flush=True)
            setting.emit(layers[0], 0.0, TOTAL_STEPS, layers[1], 0)
        elif setting.stop():
            raise Interrupted(f"stopped in the calibration, after {done} of {total}")

    def pruned(place: torch.device | None) -> Result:
        assert plan.prune is not None
        if place is None:
            state.model.to(setting.device)
        return apply(
            plan.prune,
            state,
            setting.inputs,
            seed=plan.seed,
            root=setting.root,
            progress=progress,
            calibrated=calibrated,
            solved=SolvedLayers(setting.root.work(plan.key)),
            stop=setting.stop,
            place=place,
        )

    if not streams(plan.prune, state.model, setting.device):
        return pruned(None)
    print("  one decoder layer at a time is on the device", flush=True)
    try:
        return pruned(setting.device)
    except StreamingError:
        if plan.prune.stream is True:
            raise
        return pruned(None)


def streams(spec: PruneSpec, model: PreTrainedModel, device: torch.device) -> bool:
    """Whether decoder layers are pruned one at a time on the device: as asked, or where the model does not fit it."""
    if spec.stream != "auto":
        return spec.stream
    free = free_memory(device)
    if free is None or unstreamed(spec):
        return False
    memory = Memory(memory_sizes(outline(model), model.config), stored=model.dtype.itemsize)
    windows, length = spec.calibration.windows, spec.calibration.length or 1
    return memory.one_shot(spec.method, statistics_of(spec), windows, length) > free


def apply(
    spec: PruneSpec, state: ModelState, inputs: Inputs, *, seed: int, root: Root, progress: OnLayer, **given: Any
) -> Result:
    """Prunes the model in place and puts the masks into the state.

    Args:
        given: `calibrated`, `solved`, `scratch`, `stop` and `place` of :func:`prune_oneshot`.

    Raises:
        Interrupted: `stop` said so.
        PruningError: the request does not fit the model.
    """
    started = time.monotonic()
    refuse(prune_problems(spec, matrices(state.model)))
    views = select(state.model, targets=spec.targets, layers=spec.layers, exclude=spec.exclude)
    windows = text.calibration(spec.calibration, state.tokenizer, inputs, root) if spec.calibration.parts else None
    sparsities = sparsities_of(spec, state, views, windows, place=given.get("place"))
    before = {name: mask.kept for name, mask in state.pruned.masks.items() if name in views}
    parameters = dict(state.model.named_parameters())
    untouched = fingerprints(parameters, views)

    found = prune_oneshot(
        state.model,
        views,
        method=spec.method,
        sparsity=spec.sparsity if sparsities is None else None,
        pattern=spec.pattern,
        allocation=spec.allocation if sparsities is None else sparsities,
        calibration=windows,
        masks=before,
        propagate=spec.propagate,
        statistics=root.statistics if not spec.propagate else None,
        seed=seed,
        options=method_options(spec),
        progress=progress,
        refine=Refinement(spec.refine, refine_options(spec)) if spec.refine else None,
        repair=spec.repair,
        **given,
    )
    masks = {name: Mask(kept) for name, kept in found.masks.items()}
    state.pruned = merged(state.pruned, masks, spec)
    check(views, masks, untouched=untouched, parameters=parameters)
    return Result(
        seconds=time.monotonic() - started,
        notes=(
            *text.mix_notes(spec.calibration),
            *found.notes,
            *coverage_notes(spec, state, views),
        ),
        layers=tuple(_row(asdict(row)) for row in found.rows),
    )


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}


def merged(before: Pruned, masks: Mapping[str, Mask], spec: PruneSpec) -> Pruned:
    """The masks of earlier stages with new ones laid over them."""
    kept = {name: mask for name, mask in before.masks.items() if name not in masks}
    same = before.pattern == spec.pattern or (not kept and _compatible(spec.pattern, masks, before))
    return Pruned(
        masks={**kept, **masks},
        method=method_label(spec.method),
        pattern=spec.pattern if same else "unstructured",  # no one pattern holds for all tensors
        target=_target(kept, masks, before, spec),
    )


def _compatible(pattern: str, masks: Mapping[str, Mask], before: Pruned) -> bool:
    """Whether masks may be of a pattern. Single weights that earlier stages pruned may occur next to blocks."""
    if not before.masks or not isinstance(parse_pattern(pattern), Block):
        return True  # the ledger looks, and a mask that is not of its pattern is an error
    return holds(pattern, masks)


def holds(pattern: str, masks: Mapping[str, Mask]) -> bool:
    """Whether masks are of a pattern."""
    shape = parse_pattern(pattern)
    try:
        for mask in masks.values():
            shape.check(mask.kept)
    except PruningError:
        return False
    return True


def _target(kept: Mapping[str, Mask], new: Mapping[str, Mask], before: Pruned, spec: PruneSpec) -> float | None:
    """The sparsity asked for over all masked tensors together; None where it was not one number."""
    if spec.sparsity is None or isinstance(spec.allocation, Mapping):
        return None
    if not kept:
        return spec.sparsity
    if before.target is None:
        return None
    sizes = [sum(mask.weights for mask in group.values()) for group in (kept, new)]
    return (before.target * sizes[0] + spec.sparsity * sizes[1]) / sum(sizes)
