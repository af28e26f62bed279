"""The pruning modifiers of both dialects, read field by field."""

import re
from dataclasses import replace
from typing import Any

from prunegpt.recipes.fields import FieldReader, as_number, shown
from prunegpt.recipes.matching import ALL, ALL_PRUNABLE, is_class
from prunegpt.recipes.pruning import FUNCTIONS, Pruning, exponent_of
from prunegpt.recipes.reader import Dialect

_LEGACY_TIMES = ("start_epoch", "end_epoch", "update_frequency")
_SESSION_TIMES = ("start", "end", "update")
_ROWS = "removes rows or columns; only single weights, N:M and blocks."


def _begin(reader: FieldReader, dialect: Dialect, *, method: str, one_shot: bool = False) -> Pruning:
    """What all gradual modifiers say: where and when."""
    names = _LEGACY_TIMES if dialect == "legacy" else _SESSION_TIMES
    start = max(reader.number(names[0], -1.0, low=-1), 0.0)
    end = reader.number(names[1], -1.0, low=-1)
    every = reader.number(names[2], -1.0)
    if 0 <= end < start:
        reader.problem(names[1], f"{names[1]} must not come before {names[0]}, but they are {end:g} and {start:g}.")
    if end < 0 and not one_shot:
        message = f"{names[1]} is required for pruning in training: the epoch that reaches the final sparsity."
        reader.problem(names[1], message)
    if dialect == "legacy" and every != -1 and every <= 0:
        reader.problem(names[2], f"{names[2]} must be above 0, or -1 for every step, but got {every:g}.")
    reader.unlike(
        "leave_enabled",
        True,
        f"leave_enabled: false lets pruned weights come back after {names[1]}; here they stay zero.",
    )
    modifier = reader.modifier
    return Pruning(
        modifier.name,
        modifier.line,
        modifier.stage,
        dialect,
        reader.names("params") if dialect == "legacy" else _targets(reader),
        method,
        start=start,
        end=max(end, start),
        every=every if every > 0 else -1.0,
        one_shot=one_shot,
        written_update=reader.has(names[2]),
    )


def gradual(reader: FieldReader, *, method: str, spread: str | None) -> Pruning:
    """GMPruningModifier and its kin: sparsity grows from init to final.

    Args:
        reader: of the modifier.
        method: the criterion or solver.
        spread: allocation where the modifier does not say `global_sparsity`.
    """
    pruning = _begin(reader, "legacy", method=method)
    reader.skip("log_types")
    initial = 0.0
    if reader.modifier.fields.get("init_sparsity") == "__FROM_PARAM__":
        reader.skip("init_sparsity")
        reader.partly(
            "init_sparsity __FROM_PARAM__ starts from what is pruned already; here from 0, with those masks kept.",
        )
    else:
        initial = reader.number("init_sparsity", low=0, high=1)
    final, finals = _finals(reader, pruning.entries)
    entries = tuple(dict.fromkeys([*pruning.entries, *finals]))
    _require(reader, entries)
    if reader.has("global_sparsity") and reader.flag("global_sparsity", False):
        spread = "global"
    schedule = reader.choice("inter_func", "cubic", FUNCTIONS)
    pruning = _pattern(reader, replace(pruning, final=final, finals=finals))
    if reader.flag("phased", False):
        reader.partly("phased: true alternates dense and pruned phases (AC/DC); here as schedule acdc.")
        schedule = "acdc"
    pruning = replace(pruning, initial=initial, entries=entries, spread=spread, schedule=schedule)
    return _score(reader, pruning)


def _require(reader: FieldReader, entries: tuple[str, ...]) -> None:
    if not entries:
        reader.problem("params", "params is required: names of parameters, re: expressions, or __ALL_PRUNABLE__.")


def _finals(reader: FieldReader, entries: tuple[str, ...]) -> tuple[float, dict[str, float]]:
    """final_sparsity, or the mapping sparsity -> parameters that may stand there."""
    value = reader.modifier.fields.get("final_sparsity")
    if not isinstance(value, dict):
        return reader.number("final_sparsity", low=0, high=1), {}
    reader.skip("final_sparsity")
    finals: dict[str, float] = {}
    for key, names in value.items():
        sparsity = as_number(key)
        listed = names if isinstance(names, list) else [names]
        if sparsity is None or not 0 <= sparsity <= 1 or not all(isinstance(name, str) for name in listed):
            message = (
                f"final_sparsity must be a number or {{sparsity: [params]}}, but has {shown(key)}: {shown(names)}."
            )
            reader.problem("final_sparsity", message)
            continue
        finals.update(dict.fromkeys(listed, sparsity))
    if entries:
        reader.problem("params", "params must be [] where final_sparsity names the parameters. Remove one.")
    return max(finals.values(), default=0.0), finals


def _pattern(reader: FieldReader, pruning: Pruning) -> Pruning:
    """mask_type as a pattern; N:M fixes the sparsity."""
    written = reader.raw("mask_type")
    if isinstance(written, list) and len(written) == 2 and all(type(side) is int and side > 0 for side in written):
        return replace(pruning, pattern=f"[{written[0]}, {written[1]}]")
    text = "unstructured" if written is None else str(written)
    text = {"tensorrt": "2:4", "block": "[1, 4]", "block4": "[1, 4]"}.get(text, text)
    if text in {"filter", "channel"}:
        reader.unsupported(f"mask_type {text} {_ROWS}")
    elif group := _group(text):
        fixed = 1 - group[0] / group[1]
        if abs(fixed - pruning.final) > 0.01:
            message = f"{text} fixes the sparsity at {fixed:g}, but final_sparsity is {pruning.final:g}. Change one."
            reader.problem("mask_type", message)
        return replace(pruning, pattern=text)
    elif text in {"unstructured", "[1, 4]"}:
        return replace(pruning, pattern=text)
    else:
        message = f"mask_type must be unstructured, block4, tensorrt, N:M or [a, b], but got {shown(written)}."
        reader.problem("mask_type", message)
    return pruning


def _group(text: str) -> tuple[int, int] | None:
    """N and M of N:M."""
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
    return (int(match[1]), int(match[2])) if match and 0 < int(match[1]) < int(match[2]) else None


def _score(reader: FieldReader, pruning: Pruning) -> Pruning:
    """score_type of the versions before 0.12."""
    score = reader.raw("score_type")
    if score is None or pruning.method != "magnitude":
        return pruning
    if score in ("magnitude", "movement"):
        return replace(pruning, method=str(score))
    if isinstance(score, dict) or "mfac" in str(score).lower():
        reader.skip("mfac_options")
        reader.unsupported("score_type MFAC: there is no M-FAC here; obert is the nearest solver.")
    else:
        reader.problem("score_type", f"score_type must be magnitude or movement, but got {shown(score)}.")
    return pruning


def obs(reader: FieldReader) -> Pruning:
    """OBSPruningModifier: oBERT, with the options that ours shares."""
    pruning = gradual(reader, method="obert", spread=None)
    windows = reader.whole("num_grads", 1024, low=1)
    block = reader.whole("fisher_block_size", 1, low=1)
    if reader.flag("global_sparsity", True):
        reader.partly("global_sparsity ranks weights over all layers; here a solver prunes each layer to the sparsity.")
    if reader.has("damp") and reader.number("damp", 1e-7, low=0) is not None:
        reader.partly("damp is a number in SparseML and a share of the mean Fisher diagonal here; ours is used.")
    if reader.has("num_recomputations"):
        reader.partly(
            "num_recomputations: pruning in several sub-steps with fresh statistics; here one step an update."
        )
    reader.skip("num_recomputations", "grad_sampler_kwargs", "damp")
    return replace(pruning, spread=None, options={"fisher_block": block}, windows=windows)


def acdc(reader: FieldReader) -> Pruning:
    """ACDCPruningModifier: dense and pruned phases in turn."""
    pruning = _begin(reader, "legacy", method="magnitude")
    reader.skip("momentum_buffer_reset", "log_types")
    _require(reader, pruning.entries)
    final = reader.number("compression_sparsity", low=0, high=1)
    spread = "global" if reader.flag("global_sparsity", True) else None
    if pruning.every < 0:
        reader.problem("update_frequency", "update_frequency is required: the epochs of a phase.")
    elif pruning.end - pruning.start < 2 * pruning.every:
        reader.problem("update_frequency", "a dense and a pruned phase must fit between start_epoch and end_epoch.")
    return _pattern(reader, replace(pruning, final=final, spread=spread, schedule="acdc"))


def session_magnitude(reader: FieldReader, *, one_shot: bool) -> Pruning:
    """MagnitudePruningModifier of the session dialect."""
    pruning = _begin(reader, "session", method="magnitude", one_shot=one_shot)
    initial = reader.number("init_sparsity", 0.0, low=0, high=1)
    final = reader.number("final_sparsity", low=0, high=1)
    schedule = str(reader.raw("update_scheduler") or "cubic")
    arguments = reader.raw("scheduler_args")
    spread = "global" if reader.flag("apply_globally", False) else None
    if spread:
        reader.partly("apply_globally is not implemented in SparseML; here as allocation global.")
    exponent = exponent_of(arguments)
    if exponent is None:
        got = shown(arguments["exponent"])
        reader.problem("scheduler_args", f"exponent must be above 0, up to 100, but got {got}.")
    pruning = replace(pruning, initial=initial, final=final, schedule=schedule, exponent=exponent or 2.0, spread=spread)
    _check_schedule(reader, pruning, arguments)
    return _structure(reader, pruning)


def _check_schedule(reader: FieldReader, pruning: Pruning, arguments: Any) -> None:
    schedule = pruning.schedule
    if schedule == "multi_step":
        steps = arguments.get("steps") if isinstance(arguments, dict) else None
        if not isinstance(steps, list) or not all(_is_step(step) for step in steps):
            reader.problem("scheduler_args", f"steps must be [[epoch, sparsity], ...], but got {shown(steps)}.")
    elif schedule not in {"linear", "cubic", "polynomial", "polynomial_decay"} and not re.fullmatch(
        r"calc\(.*\)", schedule, re.DOTALL
    ):
        message = (
            f"update_scheduler must be linear, cubic, polynomial, polynomial_decay, multi_step or calc(...), "
            f"but got {shown(schedule)}."
        )
        reader.problem("update_scheduler", message)
        return
    if pruning.spec_schedule is None and not pruning.one_shot:  # which decides nothing there
        reader.unsupported(f"update_scheduler {schedule[:40]}; here are linear, cubic and inverse_cubic.")


def _is_step(step: Any) -> bool:
    return isinstance(step, list) and len(step) == 2 and all(as_number(item) is not None for item in step)


def _structure(reader: FieldReader, pruning: Pruning) -> Pruning:
    """mask_structure as a pattern: in this dialect N of N:M is pruned."""
    text = str(reader.raw("mask_structure") or "unstructured")
    if reader.has("prunen") or reader.has("prunem"):
        text = f"{reader.whole('prunen', 0)}:{reader.whole('prunem', 0)}"
    if text in {"unstructured", "0:0"}:
        return pruning
    if text in {"filter", "channel"}:
        reader.unsupported(f"mask_structure {text} {_ROWS}")
    elif match := re.fullmatch(r"block_(\d{1,4}),(\d{1,4})", text):
        return replace(pruning, pattern=f"[{int(match[1])}, {int(match[2])}]")
    elif group := _group(text):
        pruned, size = group
        share = pruned / size
        if abs(share - pruning.final) > 0.01:
            reader.partly(f"{text} prunes {share:g} of the weights whatever sparsity says ({pruning.final:g}).")
        return replace(pruning, pattern=f"{size - pruned}:{size}", final=share, finals={})
    else:
        message = f"mask_structure must be unstructured, N:M or block_a,b, but got {shown(text)}."
        reader.problem("mask_structure", message)
    return pruning


def _targets(reader: FieldReader) -> tuple[str, ...]:
    names = reader.names("targets") or reader.names("compress_layers") or (ALL,)
    reader.skip("compress_layers")
    for name in names:
        if is_class(name) and name not in {ALL, ALL_PRUNABLE}:
            reader.partly(
                f"targets {name} names a class of modules; here all matrices inside decoder blocks are meant."
            )
    return names


def one_shot(reader: FieldReader, *, method: str) -> Pruning:
    """SparseGPTModifier and WandaPruningModifier."""
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
    options: dict[str, Any] = {}
    if method == "sparsegpt":
        if reader.has("block_size"):
            options["block_size"] = reader.whole("block_size", 128, low=1)
        for name in ("dampening_frac", "percdamp"):
            if reader.has(name):
                options["damping"] = reader.number(name, 0.01, low=0)
    spread = _owl(reader, options)
    if reader.raw("quantize"):
        reader.unsupported("quantize: weights are pruned but not quantised here.")
    if reader.has("preserve_sparsity_mask") and not reader.flag("preserve_sparsity_mask", True):
        reader.partly("preserve_sparsity_mask: false may bring pruned weights back; here masks of earlier stages stay.")
    propagate = reader.flag("sequential_update", True) if reader.has("sequential_update") else None
    reader.skip("target_ids", "layer_prefix", "start", "end", "update", "ignore", "offload_hessians")
    modifier = reader.modifier
    pruning = Pruning(modifier.name, modifier.line, modifier.stage, "session", targets, method, one_shot=True)
    pruning = replace(pruning, final=final, finals=finals, spread=spread, options=options, propagate=propagate)
    return _structure(reader, pruning)


def _owl(reader: FieldReader, options: dict[str, Any]) -> str | None:
    profile = reader.raw("sparsity_profile") or reader.raw("profile")
    reader.skip("profile")
    m, strength = reader.number("owl_m", 5.0, low=0), reader.number("owl_lmbda", 0.08, low=0)
    if profile is None:
        return None
    if str(profile) != "owl":
        reader.problem("sparsity_profile", f"sparsity_profile must be owl, but got {shown(profile)}.")
    if reader.has("owl_m"):
        options["multiple"] = m
    if reader.has("owl_lmbda"):
        options["limit"] = strength
    return "owl"
