"""A smaller shape of the model a stage is given."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunegpt.errors import Interrupted, ShrinkError
from prunegpt.lm.views import decoder_lists
from prunegpt.planning.fingerprint import machine
from prunegpt.planning.inputs import Inputs
from prunegpt.pruning.mask import Mask
from prunegpt.records import CALIBRATED, TOTAL_STEPS
from prunegpt.registry import LAYER_CHOICES
from prunegpt.root import Root
from prunegpt.shrinking.budget import ffn_within, measured_within, weights_of
from prunegpt.shrinking.cut import Cut, cut_depth
from prunegpt.shrinking.depth import LayerScores, OnTry
from prunegpt.shrinking.narrow import narrower, steps
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.shrink import ShrinkSpec
from prunegpt.spec.shrinking import drops_of
from prunegpt.stages import text
from prunegpt.stages.base import ModelState, RemainingLayers, Result, StageContext
from prunegpt.stages.prune import holds


class Depth(NamedTuple):
    """Which layers stay, and a row on each that was scored."""

    stay: tuple[int, ...]
    rows: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def shrink(plan: StagePlan, state: ModelState, setting: StageContext) -> Result:
    """Makes the model smaller; the masks of earlier stages are cut with it."""
    assert plan.shrink is not None
    begun = [0]  # what an earlier attempt has tried

    def tried(done: int, total: int) -> None:
        if begun[0] != total:
            begun[0] = total
            print(f"  trying {total}, after {done}", flush=True)
            setting.emit(done, 0.0, TOTAL_STEPS, total, 0)
        print(f"  tried {done} of {total}", flush=True)
        setting.emit(done, 0.0, CALIBRATED, done / total, 0)
        if done < total and setting.stop():
            raise Interrupted(f"stopped while what stays was chosen, after {done} of {total}")

    if plan.measured_on and (here := machine()) != plan.measured_on:
        raise ShrinkError(
            f"a time must be measured on the machine that the plan names, {plan.measured_on}; this is {here}. Plan the "
            "sweep here, or write the size as layers or ffn."
        )
    folder = setting.root.work(plan.key)
    return apply(plan.shrink, state, setting.inputs, root=setting.root, dtype=setting.dtype, tried=tried, folder=folder)


def apply(
    spec: ShrinkSpec,
    state: ModelState,
    inputs: Inputs,
    *,
    root: Root,
    dtype: torch.dtype,
    tried: OnTry,
    folder: Path | None = None,
) -> Result:
    """Puts the smaller model into the state.

    Args:
        dtype: that times are measured in.
        tried: called with what is tried so far of a choice, and how much there is; it may raise to stop.
        folder: where what has been tried is kept for the next attempt.

    Raises:
        Interrupted: `tried` said so.
        ShrinkError: the request does not fit the model.
    """
    started = time.monotonic()
    before = _shape(state)
    windows = text.calibration(spec.calibration, state.tokenizer, inputs, root) if spec.calibration.parts else None
    decide = partial(_decided, whole=state.model, dtype=dtype, tried=tried, folder=folder)
    rows, notes = list[Mapping[str, Any]](), list[str]()
    if spec.budget and spec.budget.by == "layers":
        spec, rows, notes = decide(spec, state.model)
    depth = choose_layers(spec, state, windows, tried=tried, folder=folder)
    whole = len(next(iter(decoder_lists(state.model).values())))
    rows, notes = [*rows, *depth.rows], [*notes, *depth.notes]
    if len(depth.stay) < whole:
        _take(state, cut_depth(state.model, depth.stay))
        earlier = state.layers or RemainingLayers(tuple(range(whole)), whole)
        state.layers = RemainingLayers(tuple(earlier.kept[layer] for layer in depth.stay), earlier.of)
    if spec.budget:
        spec, measured, found = decide(spec, state.model)
        rows, notes = [*rows, *measured], [*notes, *found]
    del decide
    for sizes in steps(state.model, spec.widths, spec.multiple_of):
        assert windows is not None
        chosen_by = spec.expert_choice if "experts" in sizes else spec.importance
        narrowed = narrower(
            state.model, sizes, windows, chosen_by=chosen_by, multiple_of=spec.multiple_of, calibrated=tried
        )
        if narrowed is not None:
            _take(state, narrowed.cut)
            rows += narrowed.rows
            notes.append(narrowed.note)
    return Result(
        seconds=time.monotonic() - started,
        notes=(*text.mix_notes(spec.calibration), *notes, *_changes(before, _shape(state))),
        layers=tuple(rows),
    )


def _decided(
    spec: ShrinkSpec,
    model: PreTrainedModel,
    *,
    whole: PreTrainedModel,
    dtype: torch.dtype,
    tried: OnTry,
    folder: Path | None,
) -> tuple[ShrinkSpec, list[Mapping[str, Any]], list[str]]:
    """The spec with the size that its budget comes to in the place of the budget, what was measured, and notes.

    Args:
        model: as far as it is cut already.
        whole: the model before the cut.
    """
    assert spec.budget is not None
    budget, config, rows = spec.budget, model.config.to_dict(), list[Mapping[str, Any]]()
    name, most = budget.limit
    if budget.measured:
        options: dict[str, Any] = {"dtype": dtype, "tried": tried, "folder": folder, "say": print}
        shape, times, protocol = measured_within(whole, config, budget, spec.widths, spec.multiple_of, **options)
        rows, size = list(times), shape.size
        taken = next(row for row in times if row["taken"])
        found = f"{taken[name]:.3f} [{taken['low']:.3f}, {taken['high']:.3f}] of that before ({protocol})"
        notes = [f"{name} of at most {most:g}: {shape.called}, measured at {found}"]
        if taken["high"] > most:
            notes.append(
                f"the interval of that {name} goes beyond {most:g}: more repeats, or an idle machine, narrow it"
            )
    elif budget.by == "ffn":
        layers, rest = weights_of(whole, budget)
        shape = ffn_within(model, budget, spec.widths, spec.multiple_of, rest + sum(layers))
        size, notes = shape.size, [f"{name} of at most {most:g}: {shape.called}"]
    else:
        layers, rest = weights_of(model, budget)
        size, notes = len(layers) - sum(number for _, number in drops_of(spec, config, layers, rest).chosen), []
    return spec.model_copy(update={"budget": None, budget.by: size}), rows, notes


def choose_layers(
    spec: ShrinkSpec, state: ModelState, windows: Tensor | None, *, tried: OnTry, folder: Path | None
) -> Depth:
    """The decoder layers that stay.

    Raises:
        ShrinkError: the request does not fit the model.
    """
    blocks = next(iter(decoder_lists(state.model).values()))
    going = drops_of(spec, state.model.config.to_dict())
    every, gone = range(len(blocks)), set(going.named)
    rows, notes = list[Mapping[str, Any]](), list[str]()
    for among, number in going.chosen:
        assert windows is not None
        choose: Callable[..., LayerScores] = LAYER_CHOICES.load(spec.choice)
        scored = choose(state.model, windows, drop=number, among=among, tried=tried, folder=folder)
        gone |= set(scored.dropped)
        rows += [
            {"layer": layer, "score": score, "dropped": layer in scored.dropped}
            for layer, score in scored.scores.items()
        ]
        notes.append(f"layers chosen by {spec.choice}: {scored.meaning}, least first")
    if gone:
        origins = state.layers.kept if state.layers else tuple(every)
        numbered = "" if origins == tuple(every) else ", as the model was numbered where its chain starts"
        went = ", ".join(str(origins[layer]) for layer in sorted(gone))
        notes.insert(0, f"{len(gone)} of {len(blocks)} layers went: {went}{numbered}")
    return Depth(tuple(layer for layer in every if layer not in gone), tuple(rows), tuple(notes))


def _take(state: ModelState, cut: Cut) -> None:
    """Puts a smaller model into the state, with what stays of the masks."""
    before = state.pruned.masks
    masks = {
        name: Mask(part.of(before[part.source].kept)) for name, part in cut.slices.items() if part.source in before
    }
    state.model, state.pruned.masks = cut.model, masks
    if not holds(state.pruned.pattern, masks):  # groups of N:M lose members with the inputs that go
        state.pruned.pattern = "unstructured"


def _shape(state: ModelState) -> dict[str, int]:
    """What notes say of a model's size."""
    found = {"layers": len(next(iter(decoder_lists(state.model).values())))}
    return {**found, "parameters": sum(weight.numel() for weight in state.model.parameters())}


def _changes(before: Mapping[str, int], after: Mapping[str, int]) -> Sequence[str]:
    """What got smaller, in a line."""
    changed = [
        f"{name} {before[name]:,} → {after[name]:,} ({after[name] / before[name]:.1%})"
        for name in before
        if before[name] != after[name]
    ]
    return ("; ".join(changed),) if changed else ("nothing got smaller: the sizes asked for are those there were",)
