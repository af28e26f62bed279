"""A recipe for reading: what is pruned and when, how the learning rate goes, what is not done, what is wrong."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prunegpt.errors import PruneGPTError
from prunegpt.recipes.distillation import distillation_updates
from prunegpt.recipes.matching import ALL_PRUNABLE, Tensors, match_params, match_targets, versions_differ
from prunegpt.recipes.meaning import RecipeMeaning, StageMeaning
from prunegpt.recipes.pruning import Pruning
from prunegpt.recipes.simulate import Update, updates_of
from prunegpt.spec.names import matches
from prunegpt.spec.schedules import epoch_of

_SAMPLES = 11  # points of a curve
_SHOWN = 8  # names in one line of text


def describe(
    meaning: RecipeMeaning, steps_per_epoch: int | None = None, tensors: Tensors | None = None
) -> dict[str, Any]:
    """Everything to know about a recipe, ready for JSON.

    Args:
        meaning: of a recipe.
        steps_per_epoch: optimizer steps; without it nothing is simulated.
        tensors: the parameters of a model; without it nothing is matched.
    """
    return {
        "source": meaning.source,
        "dialect": meaning.dialect,
        "steps_per_epoch": steps_per_epoch,
        "variables": dict(meaning.variables),
        "stages": [_stage(stage, steps_per_epoch, tensors) for stage in meaning.stages],
        "notes": [
            {"modifier": note.modifier, "line": note.line, "stage": note.stage, "level": note.level, "text": note.text}
            for note in meaning.notes
        ],
        "defects": [
            {"code": defect.code, "line": defect.line, "text": defect.text, "fix": defect.fix}
            for defect in meaning.defects
        ],
    }


def _stage(stage: StageMeaning, steps_per_epoch: int | None, tensors: Tensors | None) -> dict[str, Any]:
    return {
        "name": stage.name,
        "run": stage.run,
        "epochs": stage.epochs,
        "train": dict(stage.train),
        "prune": None if stage.prune is None else dict(stage.prune),
        "distill": None if stage.distill is None else dict(stage.distill),
        "prunings": [
            _pruning(item, lines, stage, steps_per_epoch, tensors) for item, lines in _grouped(stage.prunings)
        ],
        "distillation": _distillation(stage, steps_per_epoch),
        "learning_rate": _learning_rate(stage, steps_per_epoch),
    }


def _grouped(prunings: Sequence[Pruning]) -> list[tuple[Pruning, list[int]]]:
    """Modifiers that differ in their entries alone as one, with the lines of all."""
    groups: list[tuple[Pruning, list[int]]] = []
    for item in prunings:
        for index, (first, lines) in enumerate(groups):
            if replace(item, line=first.line, stage=first.stage, entries=first.entries) == first and first.entries:
                entries = tuple(dict.fromkeys((*first.entries, *item.entries)))
                groups[index] = (replace(first, entries=entries), [*lines, item.line])
                break
        else:
            groups.append((item, [item.line]))
    return groups


def _pruning(
    pruning: Pruning, lines: list[int], stage: StageMeaning, steps_per_epoch: int | None, tensors: Tensors | None
) -> dict[str, Any]:
    return {
        "modifier": pruning.modifier,
        "lines": lines,
        "method": pruning.method,
        "pattern": pruning.pattern,
        "schedule": pruning.schedule,
        "allocation": pruning.spread,
        "initial": pruning.initial,
        "final": pruning.final,
        "finals": dict(pruning.finals),
        "start": pruning.start,
        "end": pruning.end,
        "every": pruning.every,
        "unit": pruning.unit,
        "entries": list(pruning.entries),
        "matched": None if tensors is None else _matched(pruning, tensors),
        "updates": None if steps_per_epoch is None else _updates(pruning, stage, steps_per_epoch),
    }


def _matched(pruning: Pruning, tensors: Tensors) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    for entry in pruning.entries:
        found[entry] = list(match_entry(entry, pruning, tensors))
    if not pruning.entries:
        found["all block matrices"] = list(match_params(ALL_PRUNABLE, tensors))
    names = list(dict.fromkeys(name for hits in found.values() for name in hits))
    result: dict[str, Any] = {
        "tensors": names,
        "weights": sum(math.prod(tensors[name].shape) for name in names),
        "unmatched": [entry for entry, hits in found.items() if not hits],
    }
    if ALL_PRUNABLE in pruning.entries and pruning.dialect == "legacy":
        here = set(names)
        result["versions"] = {
            version: {
                "count": len(matched),
                "more": [name for name in matched if name not in here],
                "fewer": [name for name in names if name not in set(matched)],
            }
            for version, matched in versions_differ(tensors).items()
        }
    return result


def match_entry(entry: str, pruning: Pruning, tensors: Tensors) -> tuple[str, ...]:
    """The tensors that an entry of a pruning modifier means here."""
    if pruning.dialect == "legacy":
        return match_params(entry, tensors)
    if pruning.dialect == "session":
        return match_targets(entry, tensors)
    return tuple(name for name in tensors if matches(name, entry))


def _updates(pruning: Pruning, stage: StageMeaning, steps_per_epoch: int) -> dict[str, Any]:
    try:
        updates = updates_of(pruning, steps_per_epoch, stage.epochs)
    except PruneGPTError as error:
        return {"count": None, "error": str(error)}
    sampled = _sample(updates)
    return {
        "count": len(updates),
        "first_step": updates[0].step if updates else None,
        "last_step": updates[-1].step if updates else None,
        "last_sparsity": updates[-1].sparsity if updates else None,
        "steps": [update.step for update in updates[:_SAMPLES]],
        "curve": [{"step": item.step, "epoch": item.epoch, "sparsity": item.sparsity} for item in sampled],
    }


def _sample(updates: Sequence[Update]) -> list[Update]:
    if len(updates) <= _SAMPLES:
        return list(updates)
    return [updates[round(index * (len(updates) - 1) / (_SAMPLES - 1))] for index in range(_SAMPLES)]


def _distillation(stage: StageMeaning, steps_per_epoch: int | None) -> dict[str, Any] | None:
    if stage.distill is None:
        return None
    result: dict[str, Any] = {"written_update": stage.distillation_update}
    if stage.distillation_update is not None and steps_per_epoch is not None and steps_per_epoch <= 1_000_000:
        epochs = max(round(stage.epochs or 1), 1)
        epochs = epochs if epochs * steps_per_epoch <= 1_000_000 else 1
        result["sparseml_steps"] = distillation_updates(stage.distillation_update, steps_per_epoch, epochs)
        result["of_steps"] = epochs * steps_per_epoch
    return result


def _learning_rate(stage: StageMeaning, steps_per_epoch: int | None) -> dict[str, Any] | None:
    if stage.learning_rate is None:
        return None
    result: dict[str, Any] = {
        "follow_curve": stage.follow_curve,
        "segments": [item.model_dump(exclude_none=True) for item in stage.learning_rate.segments],
    }
    if steps_per_epoch is not None and steps_per_epoch >= 1:
        ends = [item.end or item.start for item in stage.learning_rate.segments]
        total = max(round((stage.epochs or max(ends) or 1) * steps_per_epoch), 1)
        steps = sorted({round(index * (total - 1) / (_SAMPLES - 1)) for index in range(_SAMPLES)})
        result["curve"] = [
            {
                "step": step,
                "epoch": epoch_of(step, steps_per_epoch),
                "rate": stage.learning_rate.learning_rate_at(step, steps_per_epoch=steps_per_epoch),
            }
            for step in steps
        ]
    return result


def render(description: Mapping[str, Any]) -> list[str]:
    """The lines of a description as plain text.

    Args:
        description: from :func:`describe`.
    """
    lines = [f"{description['source']} ({_DIALECTS[description['dialect']]})"]
    if description["variables"]:
        pairs = ", ".join(f"{name} = {value}" for name, value in description["variables"].items())
        lines.append(f"variables: {pairs}")
    for stage in description["stages"]:
        lines += ["", *_render_stage(stage)]
    lines += _render_notes(description["notes"])
    if description["defects"]:
        lines += ["", "known defects"]
        for defect in description["defects"]:
            lines += [f"  line {defect['line']}: {defect['code']}", f"    {defect['text']}", f"    {defect['fix']}"]
    return lines


_DIALECTS = {"legacy": "SparseML, legacy dialect", "session": "SparseML, session dialect", "own": "PruneGPT"}


def _render_stage(stage: Mapping[str, Any]) -> Iterator[str]:
    name = f"stage {stage['name']}" if stage["name"] else "stage"
    epochs = f", {stage['epochs']:g} epochs" if stage["epochs"] else ""
    yield f"{name}: {'one-shot' if stage['run'] == 'oneshot' else 'training'}{epochs}"
    if stage["train"]:
        yield f"  train: {', '.join(f'{key}={value}' for key, value in stage['train'].items())}"
    for pruning in stage["prunings"]:
        yield from _render_pruning(pruning)
    if stage["prunings"] and stage["prune"] is None:
        yield "  prune: no one section says this; see below"
    if stage["distill"] is not None:
        yield f"  distill: {', '.join(f'{key}={value}' for key, value in stage['distill'].items())}"
        fired = stage["distillation"]
        if "of_steps" in fired:
            steps = f"{fired['sparseml_steps']} of {fired['of_steps']} steps"
            yield f"    in SparseML at {steps} (update {fired['written_update']:g})"
    if stage["learning_rate"] is not None:
        yield from _render_rates(stage["learning_rate"])


def _render_pruning(pruning: Mapping[str, Any]) -> Iterator[str]:
    pattern = "" if pruning["pattern"] == "unstructured" else f" {pruning['pattern']}"
    spread = f", {pruning['allocation']}" if pruning["allocation"] else ""
    when = "" if pruning["schedule"] == "constant" and pruning["end"] is None else _when(pruning)
    yield (
        f"  prune (line {', '.join(map(str, pruning['lines']))}): {pruning['method']}{pattern}{spread}, "
        f"{pruning['initial']:g} -> {pruning['final']:g}{when}"
    )
    for entry, final in pruning["finals"].items():
        yield f"    {entry}: {final:g}"
    matched = pruning["matched"]
    if matched is None:
        yield f"    tensors: {_listed(pruning['entries']) or 'all block matrices'}"
    else:
        counts = f"{len(matched['tensors'])} with {matched['weights']:,} weights"
        yield f"    tensors: {counts}: {_listed(matched['tensors'])}"
        for entry in matched["unmatched"]:
            yield f"    matches nothing: {entry}"
        for version, differs in matched.get("versions", {}).items():
            more = f" more: {_listed(differs['more'])}." if differs["more"] else ""
            fewer = f" without: {_listed(differs['fewer'])}." if differs["fewer"] else ""
            yield f"    SparseML {version} matched {differs['count']};{more}{fewer}"
    updates = pruning["updates"]
    if updates is None:
        return
    if updates["count"] is None:
        yield f"    mask updates: {updates['error']}"
    elif updates["count"] == 0:
        yield "    mask updates: none in this training"
    elif updates["count"] == 1:
        yield f"    mask updates: 1, before step {updates['first_step']}"
    else:
        yield (
            f"    mask updates: {updates['count']}, before steps {', '.join(map(str, updates['steps'][:4]))} ... "
            f"{updates['last_step']}"
        )
        curve = ", ".join(f"{point['epoch']:.4g}: {point['sparsity']:.4g}" for point in updates["curve"])
        yield f"    sparsity at epoch {curve}"


def _when(pruning: Mapping[str, Any]) -> str:
    end = "half-way" if pruning["end"] is None else f"{pruning['end']:g}"
    every = "step" if pruning["every"] < 0 else f"{pruning['every']:g}"
    return f", {pruning['schedule']} from {pruning['unit']} {pruning['start']:g} to {end}, every {every}"


def _render_rates(rates: Mapping[str, Any]) -> Iterator[str]:
    how = "a curve that no scheduler gives" if rates["follow_curve"] else "by the scheduler above"
    yield f"  learning rate: {how}"
    if "curve" in rates:
        points = [
            f"{point['epoch']:.4g}: {'own' if point['rate'] is None else format(point['rate'], '.4g')}"
            for point in rates["curve"]
        ]
        yield f"    at epoch {', '.join(points)}"


def _render_notes(notes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for level, title in (
        ("unsupported", "not supported"),
        ("partly", "supported in part"),
        ("ignored", "without effect here"),
    ):
        chosen = [note for note in notes if note["level"] == level]
        if chosen:
            yield ""
            yield title
        for note in chosen:
            yield f"  line {note['line']}: {note['modifier']}: {note['text']}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
