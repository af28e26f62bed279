"""The pruning modifiers of both dialects, read field by field."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from prunegpt.errors import shown
from prunegpt.recipes.fields import FieldReader, as_number
from prunegpt.recipes.matching import ALL, is_class
from prunegpt.recipes.pruning import Pruning
from prunegpt.recipes.reader import Dialect

EVERY_STEP = 1e-6  # epochs between updates that no training resolves

_FUNCTIONS = ("linear", "cubic", "inverse_cubic")
_TIMES = {"legacy": ("start_epoch", "end_epoch", "update_frequency"), "session": ("start", "end", "update")}
_SHAPES = {"filter", "channel"}
_OWL = {"multiple": "owl_m", "limit": "owl_lmbda"}  # option of ours -> field


def _begin(reader: FieldReader, method: str) -> Pruning:
    """What all gradual modifiers say: where and when."""
    dialect = reader.dialect
    first, last, often = _TIMES[dialect]
    start = max(reader.number(first, -1.0, low=-1), 0.0)
    end = reader.number(last, -1.0, low=-1)
    every = reader.number(often, -1.0)
    if 0 <= end < start:
        reader.problem(last, f"{last} must not come before {first}, got {end:g} and {start:g}.")
    if end < 0 and not reader.one_shot:
        reader.problem(last, f"{last} is required for pruning in training: the epoch that reaches the final sparsity.")
    if dialect == "legacy" and every != -1 and every <= 0:
        reader.problem(often, f"{often} must be above 0, or -1 for every step, got {every:g}.")
    entries = reader.names("params") if dialect == "legacy" else _targets(reader)
    spec = {"method": method, "start": start, "end": max(end, start), "every": every if every > 0 else EVERY_STEP}
    spec |= {"clock": "sparseml"} if dialect == "legacy" else {}
    return Pruning(reader.modifier, dialect, entries, spec, one_shot=reader.one_shot)


def gradual(reader: FieldReader, *, method: str = "magnitude", allocation: str | None = None) -> Pruning:
    """GMPruningModifier and its kin: sparsity grows from init to final.

    Args:
        reader: of the modifier.
        method: the criterion or solver.
        allocation: where the modifier does not say `global_sparsity`.
    """
    pruning = _begin(reader, method)
    initial = 0.0
    if reader.modifier.fields.get("init_sparsity") == "__FROM_PARAM__":
        reader.partly(
            "init_sparsity __FROM_PARAM__ starts from what is pruned already; here from 0, with those masks kept."
        )
    else:
        initial = reader.number("init_sparsity", low=0, high=1)
    final, finals = _finals(reader, pruning.entries)
    entries = tuple(dict.fromkeys([*pruning.entries, *finals]))
    _require(reader, entries)
    spec = {**pruning.spec, "initial": initial, "schedule": reader.choice("inter_func", "cubic", _FUNCTIONS)}
    spec |= _pattern(reader, final)
    if reader.modifier.name == "GMPruningModifier":
        allocation = "global" if reader.flag("global_sparsity", False) else allocation
        spec |= {"schedule": "acdc", "regrow": True} if reader.flag("phased", False) else {}
        spec |= _score(reader)
    spec |= {"allocation": allocation} if allocation else {}
    return replace(pruning, entries=entries, finals=finals, spec=spec)


def _require(reader: FieldReader, entries: tuple[str, ...]) -> None:
    if not entries:
        reader.problem("params", "params is required: names of parameters, re: expressions, or __ALL_PRUNABLE__.")


def _finals(reader: FieldReader, entries: tuple[str, ...]) -> tuple[float, dict[str, float]]:
    """final_sparsity, or the mapping sparsity -> parameters that is allowed there."""
    value = reader.modifier.fields.get("final_sparsity")
    if not isinstance(value, dict):
        return reader.number("final_sparsity", low=0, high=1), {}
    finals: dict[str, float] = {}
    for key, names in value.items():
        sparsity = as_number(key)
        listed = names if isinstance(names, list) else [names]
        if sparsity is None or not 0 <= sparsity <= 1 or not all(isinstance(name, str) for name in listed):
            message = f"final_sparsity must be a number or {{sparsity: [params]}}; it has {shown(key)}: {shown(names)}."
            reader.problem("final_sparsity", message)
            continue
        finals.update(dict.fromkeys(listed, sparsity))
    if entries:
        reader.problem("params", "params must be [] where final_sparsity names the parameters. Remove one.")
    return max(finals.values(), default=0.0), finals


def _pattern(reader: FieldReader, final: float) -> dict[str, Any]:
    """mask_type or mask_structure as a pattern, with the sparsity where that does not fix it.

    N of N:M is kept in the legacy dialect, as here, and pruned in the session dialect.
    """
    legacy = reader.dialect == "legacy"
    name = "mask_type" if legacy else "mask_structure"
    written = reader.raw(name)
    text = "unstructured" if written is None else str(written)
    if legacy:
        text = {"tensorrt": "2:4", "block": "[1, 4]", "block4": "[1, 4]"}.get(text, text)
    elif reader.has("prunen") or reader.has("prunem"):
        text = f"{reader.whole('prunen', 0)}:{reader.whole('prunem', 0)}"
    block = re.fullmatch(r"\[(\d{1,4}), ?(\d{1,4})\]" if legacy else r"block_(\d{1,4}),(\d{1,4})", text)
    if block and int(block[1]) and int(block[2]):
        return {"pattern": f"[{int(block[1])}, {int(block[2])}]", "sparsity": final}
    if text in _SHAPES:
        reader.unsupported(f"{name} {text} removes rows or columns; only single weights, N:M and blocks.")
    elif group := _group(text):
        pruned, size = (group[1] - group[0] if legacy else group[0]), group[1]
        if abs(pruned / size - final) > 0.01 and legacy:
            message = f"{text} fixes the sparsity at {pruned / size:g}; final_sparsity is {final:g}. Change one."
            reader.problem(name, message)
        elif abs(pruned / size - final) > 0.01:
            reader.partly(f"{text} prunes {pruned / size:g} of the weights whatever sparsity says ({final:g}).")
        return {"pattern": f"{size - pruned}:{size}"}
    elif text not in {"unstructured", *(() if legacy else ("0:0",))}:
        valid = "block4, tensorrt, N:M or [a, b]" if legacy else "N:M or block_a,b"
        reader.problem(name, f"{name} must be unstructured, {valid}, got {shown(written if legacy else text)}.")
    return {"sparsity": final}


def _group(text: str) -> tuple[int, int] | None:
    """N and M of N:M."""
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
    return (int(match[1]), int(match[2])) if match and 0 < int(match[1]) < int(match[2]) else None


def _score(reader: FieldReader) -> dict[str, str]:
    """score_type of the versions before 0.12."""
    score = reader.raw("score_type")
    if score is None:
        return {}
    if score in ("magnitude", "movement"):
        return {"method": str(score)}
    if isinstance(score, dict) or "mfac" in str(score).lower():
        reader.unsupported("score_type MFAC: there is no M-FAC here; obert is the nearest solver.")
    else:
        reader.problem("score_type", f"score_type must be magnitude or movement, got {shown(score)}.")
    return {}


def obs(reader: FieldReader) -> Pruning:
    """OBSPruningModifier: oBERT, with the options that ours shares."""
    pruning = gradual(reader, method="obert")
    options = {"fisher_block": reader.whole("fisher_block_size", 1, low=1)}
    calibration = {"windows": reader.whole("num_grads", 1024, low=1)}
    if not reader.has("global_sparsity"):  # the default of SparseML
        reader.lacks("global_sparsity")
    return replace(pruning, spec={**pruning.spec, "options": options, "calibration": calibration})


def acdc(reader: FieldReader) -> Pruning:
    """ACDCPruningModifier: dense and pruned phases in turn."""
    pruning = _begin(reader, "magnitude")
    _require(reader, pruning.entries)
    final = reader.number("compression_sparsity", low=0, high=1)
    spec = {**pruning.spec, "initial": 0.0, "schedule": "acdc", "regrow": True}
    spec |= {"allocation": "global"} if reader.flag("global_sparsity", True) else {}
    if spec["every"] == EVERY_STEP:
        reader.problem("update_frequency", "update_frequency is required: the epochs of a phase.")
    elif spec["end"] - spec["start"] < 2 * spec["every"]:
        reader.problem("update_frequency", "a dense and a pruned phase must fit between start_epoch and end_epoch.")
    return replace(pruning, spec={**spec, **_pattern(reader, final)})


def session_magnitude(reader: FieldReader) -> Pruning:
    """MagnitudePruningModifier of the session dialect."""
    pruning = _begin(reader, "magnitude")
    initial = reader.number("init_sparsity", 0.0, low=0, high=1)
    final = reader.number("final_sparsity", low=0, high=1)
    schedule = _schedule(reader)
    spec: dict[str, Any] = {"method": "magnitude"}
    if not reader.one_shot:
        spec = {**pruning.spec, "initial": initial, "schedule": schedule}
    if reader.flag("apply_globally", False):
        spec["allocation"] = "global"
    return replace(pruning, spec={**spec, **_pattern(reader, final)})


def _schedule(reader: FieldReader) -> str:
    """The spec's name for the curve; where there is none as written."""
    schedule = str(reader.raw("update_scheduler") or "cubic")
    given = reader.raw("scheduler_args")
    arguments = given if isinstance(given, dict) else {}
    exponent = as_number(arguments.get("exponent", 2))
    if exponent is None or not 0 < exponent <= 100:
        message = f"exponent must be above 0, up to 100, got {shown(arguments['exponent'])}."
        reader.problem("scheduler_args", message)
    if schedule in {"linear", "cubic"}:
        return schedule
    if schedule in {"polynomial", "polynomial_decay"}:
        if exponent == 1:
            return "linear"
        if exponent == 3 and schedule == "polynomial_decay":
            return "cubic"
    elif schedule == "multi_step":
        steps = arguments.get("steps", [])
        if not isinstance(steps, list) or not all(map(_is_step, steps)):
            reader.problem("scheduler_args", f"steps must be [[epoch, sparsity], ...], got {shown(steps)}.")
    elif not (schedule.startswith("calc(") and schedule.endswith(")")):
        reader.problem(
            "update_scheduler",
            "update_scheduler must be linear, cubic, polynomial, polynomial_decay, multi_step or calc(...), got "
            f"{shown(schedule)}.",
        )
        return "cubic"
    if not reader.one_shot:  # where it decides nothing
        power = f" with exponent {exponent:g}" if schedule.startswith("poly") and exponent else ""
        reader.unsupported(f"{schedule[:40]}{power}; here are linear, cubic and inverse_cubic.")
    return schedule


def _is_step(step: Any) -> bool:
    return isinstance(step, list) and len(step) == 2 and all(as_number(item) is not None for item in step)


def _targets(reader: FieldReader) -> tuple[str, ...]:
    names = reader.names("targets") or reader.names("compress_layers") or (ALL,)
    for name in names:
        if is_class(name):
            conv1d = ", GPT-2's Conv1D too" if name == "Linear" else ""
            reader.partly(
                f"targets {name} names a class of modules; here all matrices inside decoder layers are meant{conv1d}."
            )
    return names


def one_shot(reader: FieldReader, *, method: str) -> Pruning:
    """SparseGPTModifier and WandaPruningModifier."""
    if not reader.one_shot:
        reader.unsupported("a one-shot method must be in a oneshot stage. Set run_type: oneshot.")
    targets = _targets(reader)
    finals: dict[str, float] = {}
    value = reader.raw("sparsity")
    if isinstance(value, list):
        numbers = [as_number(item) for item in value]
        if len(numbers) != len(targets) or any(item is None or not 0 <= item <= 1 for item in numbers):
            reader.problem("sparsity", "a list of sparsities must have a number from 0 to 1 for each of the targets.")
        finals = {name: item for name, item in zip(targets, numbers, strict=False) if item is not None}
        final = max(finals.values(), default=0.0)
    else:
        final = reader.number("sparsity", 0.5, low=0, high=1)
    spec: dict[str, Any] = {"method": method, **_pattern(reader, final)}
    options = {ours: reader.number(name, low=0) for ours, name in _OWL.items() if reader.has(name)}
    profile = reader.raw("sparsity_profile")
    if profile is not None and str(profile).lower() != "owl":
        reader.problem("sparsity_profile", f"sparsity_profile must be owl, got {shown(profile)}.")
    elif profile is not None:
        spec["allocation"] = "owl"
    elif options:
        reader.problem(next(iter(_OWL.values())), "owl_m and owl_lmbda need sparsity_profile: owl. Add it.")
    if method == "sparsegpt":
        if reader.has("block_size"):
            options["block_size"] = reader.whole("block_size", 128, low=1)
        for name in ("percdamp", "dampening_frac"):
            if reader.has(name):
                options["damping"] = reader.number(name, 0.01, low=0)
    if options:
        spec["options"] = options
    if reader.has("sequential_update"):
        spec["propagate"] = reader.flag("sequential_update", True)
    ignored = reader.names("ignore")
    for name in filter(is_class, ignored):
        reader.unsupported(f"ignore {name} names a class of modules. Write the names of the layers, or re: with them.")
    ignored = tuple(name for name in ignored if not is_class(name))
    return Pruning(reader.modifier, "session", targets, spec, finals, one_shot=True, ignored=ignored)


PRUNINGS: Mapping[Dialect, Mapping[str, Callable[[FieldReader], Pruning]]] = {
    "legacy": {
        "GMPruningModifier": gradual,
        "MagnitudePruningModifier": gradual,
        "GlobalMagnitudePruningModifier": partial(gradual, allocation="global"),
        "MovementPruningModifier": partial(gradual, method="movement"),
        "OBSPruningModifier": obs,
        "ACDCPruningModifier": acdc,
    },
    "session": {
        "MagnitudePruningModifier": session_magnitude,
        "SparseGPTModifier": partial(one_shot, method="sparsegpt"),
        "WandaPruningModifier": partial(one_shot, method="wanda"),
    },
}
