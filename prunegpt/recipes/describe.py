"""A recipe for reading: what is pruned and when, how the learning rate goes, what is not done, what is wrong.

Mask updates, sparsities and tensors are those of the section that the recipe becomes, so what a stage with it does.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunegpt.errors import PruneGPTError, PruningError, listed
from prunegpt.recipes.catalogue import LEVELS
from prunegpt.recipes.matching import ALL_PRUNABLE, ModelNames, versions_differ
from prunegpt.recipes.meaning import RecipeMeaning, StageMeaning
from prunegpt.recipes.pruning import Pruning, section_of
from prunegpt.registry import SCHEDULES
from prunegpt.spec.names import select_names
from prunegpt.spec.patterns import fixed_sparsity
from prunegpt.spec.schedules import epoch_of, interpolate
from prunegpt.spec.schema import GradualSpec, PruneSpec

_SAMPLES = 11  # points of a curve
_SHOWN = 8  # names in one line of text
_DIALECTS = {"legacy": "SparseML, legacy dialect", "session": "SparseML, session dialect", "own": "PruneGPT"}


def describe(
    meaning: RecipeMeaning, steps_per_epoch: int | None = None, model: ModelNames | None = None
) -> dict[str, Any]:
    """Everything to know about a recipe, ready for JSON.

    Args:
        meaning: of a recipe.
        steps_per_epoch: optimizer steps; without it nothing is simulated.
        model: what there is to match; without it nothing is.
    """
    return {
        "source": meaning.source,
        "dialect": meaning.dialect,
        "steps_per_epoch": steps_per_epoch,
        "variables": dict(meaning.variables),
        "stages": [_stage(stage, steps_per_epoch, model) for stage in meaning.stages],
        "notes": [vars(note) for note in meaning.notes],
        "defects": [vars(defect) for defect in meaning.defects],
    }


def _stage(stage: StageMeaning, per_epoch: int | None, model: ModelNames | None) -> dict[str, Any]:
    sections: list[tuple[Mapping[str, Any], tuple[Pruning, ...]]]
    if stage.prune is not None:  # one section for all its modifiers
        sections = [(stage.prune, stage.prunings)]
    else:
        sections = [(item.as_spec(), (item,)) for item in stage.prunings]
    return {
        "name": stage.name,
        "run": stage.run,
        "epochs": stage.epochs,
        "train": dict(stage.train),
        "prune": None if stage.prune is None else dict(stage.prune),
        "distill": None if stage.distill is None else dict(stage.distill),
        "prunings": [_section(fields, items, stage, per_epoch, model) for fields, items in sections],
        "learning_rate": _learning_rate(stage, per_epoch),
        "keep_zeros": stage.keep_zeros,
    }


def _section(
    fields: Mapping[str, Any],
    modifiers: Sequence[Pruning],
    stage: StageMeaning,
    per_epoch: int | None,
    model: ModelNames | None,
) -> dict[str, Any]:
    """A `prune` section, and its effect on these tensors at a number of optimizer steps per epoch."""
    spec = section_of(fields, one_shot=bool(modifiers) and modifiers[0].one_shot)
    schedule = fields.get("schedule", "constant" if type(spec) is PruneSpec else "cubic")
    shares = spec.allocation if isinstance(spec.allocation, Mapping) else {}
    final = spec.sparsity or fixed_sparsity(spec.pattern) or max(shares.values(), default=0.0)
    found: dict[str, Any] = {"initial": 0.0, "start": 0.0, "end": None, "every": None, "unit": "epochs"}
    if isinstance(spec, GradualSpec):
        found = {name: getattr(spec, name) for name in found}
    entries = {entry: item.target(entry) for item in modifiers for entry in item.entries}
    targets: dict[str, str | None] = entries or {target: target for target in spec.targets}
    legacy = any(ALL_PRUNABLE in item.entries and item.dialect == "legacy" for item in modifiers)
    return found | {
        "modifier": ", ".join(dict.fromkeys(item.modifier.name for item in modifiers)) or "prune",
        "lines": [item.modifier.line for item in modifiers] or [stage.line],
        "method": spec.method,
        "pattern": spec.pattern,
        "schedule": schedule,
        "allocation": spec.allocation if isinstance(spec.allocation, str) else None,
        "final": final,
        "finals": dict(shares),
        "entries": list(targets),
        "matched": None if model is None else _matched(spec, targets, model, versions=legacy),
        "exclude": list(spec.exclude),
        "updates": None if per_epoch is None else _updates(spec, schedule, final, per_epoch, stage.epochs),
    }


def _updates(spec: PruneSpec, schedule: str, final: float, per_epoch: int, epochs: float | None) -> dict[str, Any]:
    if schedule not in SCHEDULES:
        return {"count": None, "error": "there is no such schedule here; see what is not supported."}
    try:
        updates = updates_of(spec, final, per_epoch, epochs) if isinstance(spec, GradualSpec) else [(0, final)]
    except PruneGPTError as error:
        return {"count": None, "error": str(error)}
    return {
        "count": len(updates),
        "first_step": updates[0][0],
        "last_step": updates[-1][0],
        "last_sparsity": updates[-1][1],
        "steps": [step for step, _ in updates[:_SAMPLES]],
        "curve": [
            {"step": step, "epoch": epoch_of(step, per_epoch), "sparsity": sparsity}
            for step, sparsity in (updates[index] for index in _sampled(len(updates)))
        ],
    }


def _sampled(count: int) -> list[int]:
    """Indices of the points that are shown: all, or some of them, evenly."""
    return sorted({round(index * (count - 1) / (_SAMPLES - 1)) for index in range(_SAMPLES)})


def updates_of(spec: GradualSpec, final: float, per_epoch: int, epochs: float | None) -> list[tuple[int, float]]:
    """The steps before which masks change, and the sparsity from then on.

    Args:
        spec: how a stage prunes while it trains.
        final: the sparsity at the end.
        per_epoch: optimizer steps.
        epochs: of the training, where they are known.

    Raises:
        PruningError: the schedule does not fit the training, or what it is a fraction of is not known.
    """
    if epochs is None and (spec.end is None or spec.unit == "fraction"):
        raise PruningError("this schedule needs the number of epochs. Set train.num_train_epochs, or prune.end.")
    steps = sys.maxsize if epochs is None else max(round(epochs * per_epoch), 1)
    clock = spec.clock_in(steps, per_epoch)
    return [(step, interpolate(clock.share(spec.schedule, step), final, spec.initial)) for step in clock.updates]


def _matched(
    spec: PruneSpec, targets: Mapping[str, str | None], model: ModelNames, *, versions: bool
) -> dict[str, Any]:
    """The matrices that a run of the section prunes, and the entries that match none; `targets` are theirs."""
    names, problems = select_names(model.matrices, targets=spec.targets, layers=spec.layers, exclude=spec.exclude)
    alone = {entry: (target,) if target else () for entry, target in targets.items()}
    shapes = {matrix.name: matrix.shape for matrix in model.matrices}
    there = versions_differ(model) if versions else {}
    return {
        "tensors": names,
        "weights": sum(math.prod(shapes[name]) for name in names),
        "unmatched": [entry for entry, target in alone.items() if not select_names(model.matrices, targets=target)[0]],
        "problems": problems,
        "versions": {
            version: {
                "count": len(matched),
                "more": [name for name in matched if name not in set(names)],
                "fewer": [name for name in names if name not in set(matched)],
            }
            for version, matched in there.items()
        },
    }


def _learning_rate(stage: StageMeaning, per_epoch: int | None) -> dict[str, Any] | None:
    curve = stage.learning_rate
    if curve is None:
        return None
    result: dict[str, Any] = {
        "follow_curve": stage.follow_curve,
        "segments": [item.model_dump(exclude_none=True) for item in curve.segments],
    }
    if per_epoch is not None:
        ends = [item.end or item.start for item in curve.segments]
        total = max(round((stage.epochs or max(ends) or 1) * per_epoch), 1)
        rates = [(step, curve.learning_rate_at(step, steps_per_epoch=per_epoch)) for step in _sampled(total)]
        result["curve"] = [{"step": step, "epoch": epoch_of(step, per_epoch), "rate": rate} for step, rate in rates]
    return result


def render(description: Mapping[str, Any]) -> list[str]:
    """The lines of a description as plain text.

    Args:
        description: from :func:`describe`.
    """
    lines = [f"{description['source']} ({_DIALECTS[description['dialect']]})"]
    if description["variables"]:
        lines.append(f"variables: {', '.join(f'{name} = {value}' for name, value in description['variables'].items())}")
    for stage in description["stages"]:
        lines += ["", *_render_stage(stage)]
    for level in ("unsupported", "partly", "ignored"):
        chosen = [note for note in description["notes"] if note["level"] == level]
        lines += ["", LEVELS[level]] if chosen else []
        lines += [f"  line {note['line']}: {note['modifier']}: {note['text']}" for note in chosen]
    lines += ["", "known defects"] if description["defects"] else []
    for defect in description["defects"]:
        lines += [f"  line {defect['line']}: {defect['code']}", f"    {defect['text']}", f"    {defect['fix']}"]
    return lines


def _render_stage(stage: Mapping[str, Any]) -> Iterator[str]:
    name = f"stage {stage['name']}" if stage["name"] else "stage"
    epochs = f", {stage['epochs']:g} epochs" if stage["epochs"] else ""
    yield f"{name}: {'one-shot' if stage['run'] == 'oneshot' else 'training'}{epochs}"
    if stage["train"]:
        yield f"  train: {_pairs(stage['train'])}"
    for pruning in stage["prunings"]:
        yield from _render_pruning(pruning)
    if stage["prunings"] and stage["prune"] is None:
        yield "  prune: no one section says this; see below"
    if stage["keep_zeros"]:
        yield "  keep_zeros: every zero in the matrices of the decoder layers stays zero"
    if stage["distill"] is not None:
        yield f"  distill: {_pairs(stage['distill'])}"
    if (rates := stage["learning_rate"]) is not None:
        how = "a curve that no scheduler gives" if rates["follow_curve"] else "by the scheduler above"
        yield f"  learning rate: {how}"
        if "curve" in rates:
            points = [
                f"{point['epoch']:.4g}: {'own' if point['rate'] is None else format(point['rate'], '.4g')}"
                for point in rates["curve"]
            ]
            yield f"    at epoch {', '.join(points)}"


def _pairs(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in fields.items())


def _render_pruning(pruning: Mapping[str, Any]) -> Iterator[str]:
    pattern = "" if pruning["pattern"] == "unstructured" else f" {pruning['pattern']}"
    spread = f", {pruning['allocation']}" if pruning["allocation"] else ""
    when = ""
    if pruning["every"] is not None:
        end = "half-way" if pruning["end"] is None else f"{pruning['end']:g}"
        every = "step" if pruning["every"] < 1e-5 else f"{pruning['every']:g}"
        when = f", {pruning['schedule']} from {pruning['unit']} {pruning['start']:g} to {end}, every {every}"
    yield (
        f"  prune (line {', '.join(map(str, pruning['lines']))}): {pruning['method']}{pattern}{spread}, "
        f"{pruning['initial']:g} -> {pruning['final']:g}{when}"
    )
    yield from (f"    {entry}: {final:g}" for entry, final in pruning["finals"].items())
    matched, updates = pruning["matched"], pruning["updates"]
    if pruning["exclude"]:
        yield f"    left alone: {listed(pruning['exclude'], _SHOWN)}"
    if matched is None:
        yield f"    tensors: {listed(pruning['entries'] or ['all decoder weight matrices'], _SHOWN)}"
    else:
        counts = f"{len(matched['tensors'])} with {matched['weights']:,} weights"
        yield f"    tensors: {counts}: {listed(matched['tensors'], _SHOWN)}"
        yield from (f"    a run is refused: {problem}" for problem in matched["problems"])
        yield from (f"    matches nothing: {entry}" for entry in matched["unmatched"])
        for version, differs in matched["versions"].items():
            more = f" more: {listed(differs['more'], _SHOWN)}." if differs["more"] else ""
            fewer = f" without: {listed(differs['fewer'], _SHOWN)}." if differs["fewer"] else ""
            yield f"    SparseML {version} matched {differs['count']};{more}{fewer}"
    if updates is None:
        return
    if updates["count"] is None:
        yield f"    mask updates: {updates['error']}"
    elif updates["count"] == 1:
        yield f"    mask updates: 1, before step {updates['first_step']}"
    else:
        first = ", ".join(map(str, updates["steps"][:4]))
        yield f"    mask updates: {updates['count']}, before steps {first} ... {updates['last_step']}"
        curve = ", ".join(f"{point['epoch']:.4g}: {point['sparsity']:.4g}" for point in updates["curve"])
        yield f"    sparsity at epoch {curve}"
