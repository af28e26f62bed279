"""`base` and each trial merged, `vary` and `seeds` multiplied out: a list of single configurations."""

import copy
import itertools
import json
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from prunegpt.errors import Problem
from prunegpt.spec.problems import messages_of
from prunegpt.spec.read import Document, set_path
from prunegpt.spec.schema import TrialSpec

MAX_TRIALS = 10_000  # in one sweep
MAX_NAME = 150  # characters; a name is a folder's
_TOO_MANY = f"a sweep may have {MAX_TRIALS} trials, but has more. Split it, or vary less."
_TEXT_SOURCE = ("path", "files", "name", "revision", "text_column", "tokens")
_KEY = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Configuration:
    """One point of a sweep."""

    index: int  # of the trial in the spec, for error messages
    group: str
    name: str
    seed: int
    spec: TrialSpec
    merged: Mapping[str, Any]  # the same as plain data
    swept: Mapping[str, Any]


@dataclass
class Expansion:
    """The configurations of a spec, in its order, and what is wrong with the others."""

    configurations: list[Configuration] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)  # trials of which some configuration has a problem


def expand(document: Document, skip: Container[int] = ()) -> Expansion:
    """All configurations, in spec order, the last varied key fastest.

    Args:
        skip: indices of trials that are known to be malformed.
    """
    base = document.data.get("base") or {}
    found = Expansion()
    for index, raw in enumerate(document.data.get("trials") or []):
        if index in skip:
            continue
        merged = merge(base, raw)
        vary = merged.pop("vary", None) or {}
        count = math.prod(len(values) for values in vary.values())
        if len(found.configurations) + count > MAX_TRIALS:
            _note(found, document, index, "vary", _TOO_MANY)
            continue
        for swept in _product(vary):
            if not _expand_one(index, merged, swept, document, found):
                break
    _check_names(found, document)
    return found


def _expand_one(
    index: int, merged: dict[str, Any], swept: Mapping[str, Any], document: Document, found: Expansion
) -> bool:
    """Appends one configuration a seed; False where a problem was found, which its siblings would only repeat."""
    data = copy.deepcopy(merged)
    try:
        for path, value in swept.items():
            set_path(data, path.split("."), copy.deepcopy(value))
    except ValueError as error:
        _note(found, document, index, "vary", f"{path}: {error}")
        return False
    try:
        data["name"] = group = _name(str(merged.get("name")), swept)
    except ValueError as error:
        _note(found, document, index, "name", str(error))
        return False
    try:
        spec = TrialSpec.model_validate(data)
    except ValidationError as error:
        for place, message in messages_of(error, TrialSpec, data):
            found.problems.append(document.problem(written_at(document, index, swept, place), message))
        found.broken.add(index)
        return False
    if len(found.configurations) + len(spec.seeds) > MAX_TRIALS:
        _note(found, document, index, "seeds", _TOO_MANY)
        return False
    for seed in spec.seeds:
        name = group if len(spec.seeds) == 1 else f"{group}@{seed}"
        found.configurations.append(
            Configuration(index, group, name, seed, spec, {**data, "seeds": [seed]}, dict(swept))
        )
    return True


def _note(found: Expansion, document: Document, index: int, key: str, message: str) -> None:
    found.problems.append(document.problem(("trials", index, key), message))
    found.broken.add(index)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mappings key by key.

    A model is taken as a whole, and data that names its source keeps nothing that describes the base's source.
    """
    merged = dict(copy.deepcopy(base))
    for key, value in over.items():
        below = merged.get(key)
        if key != "model" and isinstance(below, Mapping) and isinstance(value, Mapping):
            if key == "data" and ("path" in value or "files" in value):
                below = {name: item for name, item in below.items() if name not in _TEXT_SOURCE}
            merged[key] = merge(below, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def written_at(
    document: Document, index: int, swept: Iterable[str], path: Sequence[str | int]
) -> tuple[str | int, ...]:
    """Where the spec says what a trial has at a path: in `vary`, in the trial, or in base."""
    dotted = ".".join(map(str, path))
    for varied in swept:
        if dotted and (f"{dotted}.".startswith(f"{varied}.") or f"{varied}.".startswith(f"{dotted}.")):
            return ("trials", index, "vary", varied)
    own, shared = document.data["trials"][index], document.data.get("base") or {}
    in_base = bool(path) and path[0] not in own and path[0] in shared
    return ("base", *path) if in_base else ("trials", index, *path)


def with_varied(data: Mapping[str, Any]) -> dict[str, Any]:
    """A spec whose trials hold the first value of what they vary and do not say otherwise.

    A field that must be there may be given by `vary` alone, such as the teacher of a distillation.
    """
    trials = data.get("trials")
    if not isinstance(trials, list):
        return dict(data)
    return {**data, "trials": [_with_first(trial) for trial in trials]}


def _with_first(trial: Any) -> Any:
    vary = trial.get("vary") if isinstance(trial, dict) else None
    if not isinstance(vary, dict):
        return trial
    filled = copy.deepcopy(trial)
    for path, values in vary.items():
        steps = str(path).split(".")
        if isinstance(values, list) and values and steps[0] in filled and not _holds(filled, steps):
            with suppress(ValueError):  # a path that leads nowhere is told when the trial is expanded
                set_path(filled, steps, copy.deepcopy(values[0]))
    return filled


def _holds(node: Any, steps: Sequence[str]) -> bool:
    for step in steps:
        if isinstance(node, list) and step.isdigit() and int(step) < len(node):
            node = node[int(step)]
        elif isinstance(node, dict) and step in node:
            node = node[step]
        else:
            return False
    return True


def _product(vary: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*vary.values()):
        yield dict(zip(vary, values, strict=True))


def _name(template: str, swept: Mapping[str, Any]) -> str:
    """`layer-{layers}` filled in, or `-key=value` appended for each varied key.

    Raises:
        ValueError: the template holds a key that is not varied, or a lone brace; or the name is too long.
    """
    keys = dict(zip(_short(list(swept)), map(slug, swept.values()), strict=True))
    if "{" in template or "}" in template:
        name = _KEY.sub(lambda match: keys.get(match[1], match[0]), template)
    else:
        name = template + "".join(f"-{slug(key)}={value}" for key, value in keys.items())
    if "{" in name or "}" in name:
        raise ValueError(
            f"a name may hold {{KEY}} of a varied key ({', '.join(keys) or 'none here'}), but got {template!r}."
        )
    if len(name) > MAX_NAME:
        raise ValueError(
            f"a trial's name may have {MAX_NAME} characters, but {name[:60]}... has {len(name)}. "
            f"Choose a shorter name, or fewer varied keys in it, such as {template[:20]}-{{{next(iter(keys), 'KEY')}}}."
        )
    return name


def _short(paths: Sequence[str]) -> list[str]:
    """The last step of each path, or the whole path where two end alike."""
    last = [path.rsplit(".", 1)[-1] for path in paths]
    return [step if last.count(step) == 1 else path for step, path in zip(last, paths, strict=True)]


def slug(value: Any) -> str:
    """A value as part of a name: letters, digits and ._=+,- only."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return re.sub(r"[^A-Za-z0-9._=+,-]+", "_", text).strip("_") or "empty"


def _check_names(found: Expansion, document: Document) -> None:
    seen: dict[str, int] = {}
    for item in found.configurations:
        if item.name in seen:
            message = f"trial names must differ, but {item.name!r} is also trials.{seen[item.name]}. Rename one."
            found.problems.append(document.problem(("trials", item.index), message))
        seen.setdefault(item.name, item.index)
