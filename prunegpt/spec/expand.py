"""`base` and each trial merged, `vary` and `seeds` multiplied out: a list of single configurations.

A trial with `search` gives none; it is a template, and each suggestion fills it.
"""

import copy
import itertools
import json
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from sys import intern
from typing import Any

from pydantic import ValidationError

from prunegpt.errors import Problem
from prunegpt.spec.naming import MAX_NAME as MAX_NAME
from prunegpt.spec.naming import slug as slug
from prunegpt.spec.naming import trial_name
from prunegpt.spec.paths import set_path
from prunegpt.spec.problems import messages_of
from prunegpt.spec.read import Document
from prunegpt.spec.schema import EvaluateSpec, TrialSpec
from prunegpt.spec.search import Dimension, SearchSpec
from prunegpt.spec.space import assigned, is_active, ordered

MAX_TRIALS = 10_000  # in one sweep
_TOO_MANY = f"a sweep may have {MAX_TRIALS} trials; it has more. Split it, or vary less."
_OWN = frozenset({"name", "seeds", "stages"})  # of a trial, beside what trials of a grid may share
_TEXT_SOURCE = ("path", "files", "name", "revision", "text_column", "tokens")


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
    frame: str  # all of it but its name, seed and stages, as text
    steps: tuple[str, ...]  # its stages likewise

    def place_of(self, evaluate: EvaluateSpec) -> str:
        """The path of an evaluation in the trial."""
        written = self.merged.get("evaluate")
        names = [EvaluateSpec.model_validate(one).called for one in written] if isinstance(written, list) else []
        return f"evaluate.{names.index(evaluate.called)}" if evaluate.called in names else "evaluate"


@dataclass(frozen=True)
class SearchTemplate:
    """A trial of the spec that is searched."""

    index: int  # of the trial in the spec
    name: str  # template of the names of its trials
    merged: Mapping[str, Any]  # the trial over base, without `search`
    spec: SearchSpec
    before: int  # configurations before it in the spec

    def name_of(self, number: int) -> str:
        """The name of a suggested trial."""
        return self._numbered.replace("{number}", f"{number:03d}")

    @property
    def pattern(self) -> str:
        """A regular expression of all names it gives."""
        return re.escape(self._numbered).replace(re.escape("{number}"), r"\d{3,}")

    @property
    def _numbered(self) -> str:
        return self.name if "{number}" in self.name else f"{self.name}-{{number}}"


@dataclass
class Expansion:
    """The configurations of a spec, in its order, and what is wrong with the others."""

    document: Document
    configurations: list[Configuration] = field(default_factory=list)
    searches: list[SearchTemplate] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)  # trials of which some configuration has a problem

    def note(self, index: int, key: str, message: str) -> None:
        """Adds a problem of a trial."""
        self.problems.append(self.document.problem(("trials", index, key), message))
        self.broken.add(index)


def expand(document: Document, skip: Container[int] = ()) -> Expansion:
    """All configurations, in spec order, the last varied key fastest.

    Args:
        skip: indices of trials that are known to be malformed.
    """
    base = document.data.get("base") or {}
    found = Expansion(document)
    for index, raw in enumerate(document.data.get("trials") or []):
        if index in skip:
            continue
        merged = merge(base, raw)
        vary = merged.pop("vary", None) or {}
        if (searched := merged.pop("search", None)) is not None:
            _expand_search(index, merged, vary, searched, found)
            continue
        count = math.prod(len(values) for values in vary.values())
        if len(found.configurations) + count > MAX_TRIALS:
            found.note(index, "vary", _TOO_MANY)
            continue
        for swept in _product(vary):
            if not _expand_one(index, merged, swept, found):
                break
    _check_names(found)
    return found


def _expand_one(index: int, merged: Mapping[str, Any], swept: Mapping[str, Any], found: Expansion) -> bool:
    """Appends one configuration a seed; False where a problem was found, which its siblings would only repeat."""
    try:
        group = trial_name(str(merged.get("name")), swept)
    except ValueError as error:
        found.note(index, "name", str(error))
        return False
    made, problems = _configured(found.document, index, merged, swept, swept, group)
    if len(found.configurations) + len(made) > MAX_TRIALS:
        found.note(index, "seeds", _TOO_MANY)
        return False
    found.configurations += made
    found.problems += problems
    if problems:
        found.broken.add(index)
    return not problems


def _configured(
    document: Document,
    index: int,
    merged: Mapping[str, Any],
    values: Mapping[str, Any],
    swept: Mapping[str, Any],
    group: str,
) -> tuple[list[Configuration], list[Problem]]:
    """One configuration a seed, or what is wrong.

    Args:
        values: path -> value to set, in this order.
        swept: the same as the trial names it.
    """
    data = copy.deepcopy(dict(merged))
    try:
        for path, value in values.items():
            set_path(data, path.split("."), copy.deepcopy(value))
    except ValueError as error:
        place = varied_at(document, index, path)
        told = f"{path}: {error}"
        return [], [document.problem(place[:-1] if place[2] == "vary" else place, told)]
    data["name"] = group
    try:
        spec = TrialSpec.model_validate(data)
    except ValidationError as error:
        return [], [
            document.problem(written_at(document, index, swept, place), message)
            for place, message in messages_of(error, TrialSpec, data)
        ]
    names = [group] if len(spec.seeds) == 1 else [f"{group}@{seed}" for seed in spec.seeds]
    frame = intern(json.dumps({name: value for name, value in data.items() if name not in _OWN}, default=repr))
    steps = tuple(intern(json.dumps(stage, default=repr)) for stage in data.get("stages", ()))
    return [
        Configuration(index, group, name, seed, spec, {**data, "seeds": [seed]}, dict(swept), frame, steps)
        for name, seed in zip(names, spec.seeds, strict=True)
    ], []


def _expand_search(
    index: int, merged: dict[str, Any], vary: Mapping[str, Any], searched: Mapping[str, Any], found: Expansion
) -> None:
    """Appends the template of a trial that is searched."""
    template = SearchTemplate(
        index, str(merged["name"]), merged, SearchSpec.model_validate(searched), len(found.configurations)
    )
    if vary:
        found.note(index, "search", "a trial has either vary or search; it has both. Remove one.")
    if "{" in template.name.replace("{number}", ""):
        message = f"the name of a search may hold {{number}} and no other key, got {template.name!r}."
        found.note(index, "name", message)
    if len(template.name_of(MAX_TRIALS)) > MAX_NAME:
        found.note(index, "name", f"a trial's name may have {MAX_NAME} characters. Choose a shorter one.")
    seeds = merged.get("seeds", [0])
    if isinstance(seeds, list) and len(seeds) > 1:
        message = (
            f"a searched trial takes one seed; it has {len(seeds)}: {seeds}. Set seeds to one of them here, and run "
            "what the search finds with several."
        )
        found.note(index, "seeds", message)
    if index not in found.broken:
        found.searches.append(template)


def suggested(
    document: Document, template: SearchTemplate, chosen: Mapping[str, Any], name: str
) -> tuple[Configuration | None, list[Problem]]:
    """The configuration that choices make of a search's template, or what is wrong with it.

    Args:
        chosen: path -> choice, of all paths that are searched under one another.
    """
    values = assigned(template.spec.space, chosen)
    made, problems = _configured(document, template.index, template.merged, values, chosen, name)
    return (made[0] if made else None), problems


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
            return varied_at(document, index, varied)
    own, shared = document.data["trials"][index], document.data.get("base") or {}
    in_base = bool(path) and path[0] not in own and isinstance(shared, Mapping) and path[0] in shared
    return ("base", *path) if in_base else ("trials", index, *path)


def varied_at(document: Document, index: int, path: str) -> tuple[str | int, ...]:
    """Where a trial says what it varies or searches at a path."""
    searched = "search" in document.data["trials"][index]
    return ("trials", index, "search", "space", path) if searched else ("trials", index, "vary", path)


def with_varied(data: Mapping[str, Any]) -> dict[str, Any]:
    """A spec whose trials hold the first value of what they vary and do not say otherwise.

    A field that must be there may be given by `vary` alone, such as the teacher of a distillation.
    """
    trials = data.get("trials")
    if not isinstance(trials, list):
        return dict(data)
    return {**data, "trials": [_with_first(trial) for trial in trials]}


def _with_first(trial: Any) -> Any:
    """A trial with the first of what it varies or searches, where it does not say otherwise."""
    first = {**_first_varied(trial), **_first_searched(trial)} if isinstance(trial, dict) else {}
    if not first:
        return trial
    filled = copy.deepcopy(trial)
    for path, value in first.items():
        steps = str(path).split(".")
        if steps[0] in filled and not _holds(filled, steps):
            with suppress(ValueError):  # a path that leads nowhere is reported when the trial is expanded
                set_path(filled, steps, copy.deepcopy(value))
    return filled


def _first_varied(trial: Mapping[str, Any]) -> dict[str, Any]:
    vary = trial.get("vary")
    if not isinstance(vary, dict):
        return {}
    return {path: values[0] for path, values in vary.items() if isinstance(values, list) and values}


def _first_searched(trial: Mapping[str, Any]) -> dict[str, Any]:
    search = trial.get("search")
    searched = search.get("space") if isinstance(search, dict) else None
    if not isinstance(searched, dict):
        return {}
    try:
        space = {path: Dimension.model_validate(dimension) for path, dimension in searched.items()}
        chosen: dict[str, Any] = {}
        for path in ordered(space):
            if is_active(space, path, chosen):
                chosen[path] = space[path].corners[0]
        return assigned(space, chosen)
    except (ValueError, KeyError, RecursionError):  # reported where the search is checked
        return {}


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


def _check_names(found: Expansion) -> None:
    seen: dict[str, Configuration] = {}  # without regard to case: some file systems take "A" and "a" for one folder
    for item in found.configurations:
        other = seen.setdefault(item.name.casefold(), item)
        if other is not item:
            named = "" if other.name == item.name else f" {other.name!r}, and file systems may not distinguish them"
            message = f"trial names must differ; {item.name!r} is also trials.{other.index}{named}. Rename one."
            found.problems.append(found.document.problem(("trials", item.index), message))
    names = [item.name for item in seen.values()]
    for template in found.searches:
        taken = next((name for name in names if re.fullmatch(template.pattern, name, re.IGNORECASE)), None)
        if taken is not None:
            message = f"names of searched trials are like {template.name_of(1)!r}; {taken!r} is one. Rename one."
            found.problems.append(found.document.problem(("trials", template.index, "name"), message))
        names.append(template.name_of(1))
