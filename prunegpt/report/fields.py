"""The fields of trials: what columns, filters, groups and downloads of every list of trials are made of.

One catalogue for the dashboard, `prunegpt sweep status`, data frames, CSV and JSON: a field is called, measured and
printed alike wherever it is shown.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any

from prunegpt.errors import PruneGPTError, listed, unknown
from prunegpt.records import TrialResult, task_scores
from prunegpt.report.columns import COLUMNS
from prunegpt.report.config import resolved
from prunegpt.report.curve_fields import CURVE, curve_fields, kept_fields
from prunegpt.report.field import (
    ALWAYS,
    FOREIGN,
    GROUP,
    LAST,
    LASTED,
    NAME,
    OURS,
    SPENT,
    TAGS,
    FieldKind,
    TrialField,
    run_says,
)
from prunegpt.report.format import is_number, plain
from prunegpt.report.logged import flat, is_logged, metrics_of
from prunegpt.spec.metrics import MEAN, SPEED, SPEEDS, speed_metric

if TYPE_CHECKING:
    from prunegpt.store.curves import Summaries

SWEPT, LOGGED, CONFIG = "swept.", "logged.", "config."  # what keys of other origins begin with
_NOT_FINITE = ("nan", "inf", "-inf")  # how a value that a W&B client has logged is kept where it is no number
_ALSO = {"trial": "name", "low": "perplexity_low", "high": "perplexity_high", "nonzero": "size"}  # further names
_SCALARS = (str, int, float, type(None))
_MOST_NAMED = 3  # fields that a message lists where a name could mean several


class FieldError(PruneGPTError, ValueError):
    """A name that no field has, or that several have."""


def _speeds(trial: TrialResult) -> Mapping[str, float]:
    return trial.measured.speed.metrics if trial.measured and trial.measured.speed else {}


def _once(of: Callable[[TrialResult], Any]) -> Callable[[TrialResult], Any]:
    """What is worked out of a trial, kept for the fields that share it until the trial is another."""
    kept: dict[int, tuple[TrialResult, Any]] = {}

    def value(trial: TrialResult) -> Any:
        if trial.id not in kept or kept[trial.id][0] is not trial:
            kept[trial.id] = (trial, of(trial))
        return kept[trial.id][1]

    return value


def _within(view: Callable[[TrialResult], Any], of: Callable[[Any], Any]) -> Callable[[TrialResult], Any]:
    return lambda trial: of(view(trial))


class TrialFields:
    """The fields of some trials.

    Args:
        trials: those that have what is asked for; configuration paths, metrics and shared stages are theirs.
        notes: what people have written, by a trial's id.
        interval: the ends of a trial's interval, where they are known.
        curves: gives what their curves come to, as it is now; what it gives another time may be another object.
        configs: keeps resolved configurations from one catalogue to the next, by a trial's id.
    """

    def __init__(
        self,
        trials: Sequence[TrialResult],
        *,
        notes: Mapping[int, str] | None = None,
        interval: Callable[[TrialResult], tuple[float, float] | None] | None = None,
        curves: Callable[[], "Summaries | None"] = lambda: None,
        configs: dict[int, tuple[TrialResult, Mapping[str, Any]]] | None = None,
    ) -> None:
        self.trials = trials
        self._notes = notes or {}
        self._interval = interval
        self._summaries = curves
        self._made: tuple[Summaries | None, Mapping[str, TrialField]] | None = None
        self._configs = configs if configs is not None else {}
        self._constant: set[str] = set()  # keys of what has one value in all trials, but for fixed ones

    def __iter__(self) -> Iterator[TrialField]:
        """All of them, in the order of columns: the name, what was swept, what was measured, the rest."""
        name, *always = self.fixed.values()
        further = (self.curves, self.config)
        return chain((name,), self.swept.values(), self.logged.values(), always, *(one.values() for one in further))

    @cached_property
    def fixed(self) -> Mapping[str, TrialField]:
        """Those that do not depend on configurations and metrics, by key."""
        foreign = is_logged(self.trials)
        found = [*ALWAYS, *(() if foreign else OURS), *self._further(), *self._timed(foreign), *LAST]
        if foreign:
            found[1] = NAME
        found.append(GROUP)
        if any(trial.plan.foreign for trial in self.trials):
            found += FOREIGN
        found.append(TAGS)
        found.append(TrialField("note", "Note", "text", "what people have written on it", self._note))
        return {one.key: one for one in found}

    def _further(self) -> Iterator[TrialField]:
        """What is measured beside the first perplexity."""
        also = {one.name: one.evaluate for trial in self.trials for one in trial.plan.also}
        for name in (name for name, evaluate in also.items() if evaluate.kind == "text"):
            view = _once(methodcaller("under", name))
            for one in OURS:
                if one.measured:
                    label, of = f"{one.label} ({name})", _within(view, one.of)
                    kept = {"key": f"{one.key}:{name}", "label": label, "of": of, "evaluation": name}
                    yield replace(one, **kept)  # type: ignore[arg-type]
        for name in (name for name, evaluate in also.items() if evaluate.speed):
            metrics = _once(_within(methodcaller("under", name), _speeds))
            for metric, (_, about) in SPEEDS.items():
                end = "" if name == SPEED else f" ({name})"
                kind: FieldKind = "count" if metric == "memory" else "number"
                of, key = _within(metrics, methodcaller("get", metric)), speed_metric(metric, name)
                label = COLUMNS[metric].header + end
                yield TrialField(key, label, kind, about, of, measured=True, evaluation=name)
        scores = _once(lambda trial: task_scores(trial.scores))
        for key in dict.fromkeys(key for trial in self.trials for key in scores(trial)):
            label = "Tasks, mean" if key == MEAN else key.partition(":")[2].replace("/", " ")
            of = _within(scores, methodcaller("get", key))
            yield TrialField(key, label, "percent", "score of a task, 0 to 1", of)

    def _timed(self, foreign: bool) -> Iterator[TrialField]:
        if self._interval is not None and not foreign:
            for end, key in enumerate(("perplexity_low", "perplexity_high")):
                label = f"95% interval, {key.rpartition('_')[2]}"
                yield TrialField(key, label, "loss", "of the perplexity", self._end(end), measured=True)
        if foreign:
            yield LASTED
            return
        own = "wall time of the stages that no other trial has been charged with, in seconds"
        yield TrialField("own_seconds", "Time", "seconds", own, lambda trial: self.charged.get(trial.id))
        yield SPENT

    def _end(self, end: int) -> Callable[[TrialResult], float | None]:
        def of(trial: TrialResult) -> float | None:
            found = self._interval(trial) if self._interval and trial.measured else None
            return found[end] if found else None

        return of

    @cached_property
    def charged(self) -> Mapping[int, float]:
        """Seconds of a trial's own stages, by id: each stage is charged once, to the trial that computed it.

        Where no record shows that, as after a retry, the first trial that was tried more than once and has it.
        """
        owners: dict[str, int] = {}
        begun = sorted((one for one in self.trials if one.stages), key=lambda one: (one.started or 0.0, one.id))
        for computed in (True, False):
            for trial in begun:
                for stage in trial.stages:
                    if not stage.cached if computed else trial.attempts > 1:
                        owners.setdefault(stage.key, trial.id)
        return {
            trial.id: sum(stage.seconds for stage in trial.stages if owners.get(stage.key) == trial.id)
            for trial in begun
        }

    def _note(self, trial: TrialResult) -> str | None:
        texts = (run_says("notes")(trial), self._notes.get(trial.id))
        return "\n".join(text for text in texts if text) or None

    @cached_property
    def swept(self) -> Mapping[str, TrialField]:
        """What was varied, by path."""
        return self._by_path(SWEPT, attrgetter("swept"))

    @cached_property
    def logged(self) -> Mapping[str, TrialField]:
        """The last value of every metric that a W&B client has logged, by its own name."""
        known = {trial.id: dict(metrics_of(trial)) for trial in self.trials if trial.plan.foreign}
        return self._by_path(LOGGED, lambda trial: known.get(trial.id, {}))

    @property
    def curves(self) -> Mapping[str, TrialField]:
        """What the curves of the trials come to, as far as they are written now: last.loss, min.eval_loss, ..."""
        found = self._summaries()
        if self._made is None or found is not self._made[0]:
            self._made = (found, curve_fields(found) if found else kept_fields(self.trials))
        return self._made[1]

    @cached_property
    def config(self) -> Mapping[str, TrialField]:
        """Every value of the configurations that was not swept, by path."""
        return {path: field for path, field in self._by_path(CONFIG, self._config).items() if path not in self.swept}

    def _config(self, trial: TrialResult) -> Mapping[str, Any]:
        known = self._configs.get(trial.id)
        if known is None or known[0] is not trial:
            values = dict(flat(trial.config)) if trial.plan.foreign else dict(_leaves(resolved(trial)))
            known = self._configs[trial.id] = (trial, values)
        return known[1]

    def _by_path(self, origin: str, values: Callable[[TrialResult], Mapping[str, Any]]) -> Mapping[str, TrialField]:
        """A field for every path that a trial has a value at; each trial is asked once for its values."""
        rows = [values(trial) for trial in self.trials]
        paths = dict.fromkeys(chain.from_iterable(rows))
        return {path: self._of(origin, path, values, [row.get(path) for row in rows]) for path in paths}

    def _of(
        self, origin: str, path: str, values: Callable[[TrialResult], Mapping[str, Any]], present: Sequence[Any]
    ) -> TrialField:
        kind = _kind([value for value in present if value is not None])

        def of(trial: TrialResult) -> Any:
            value = values(trial).get(path)
            return value if isinstance(value, list | tuple) else plain(value)

        about = {SWEPT: "swept", LOGGED: "logged to W&B", CONFIG: "configuration"}[origin]
        key = f"{origin}{path}"
        if present.count(present[0]) == len(present):
            self._constant.add(key)
        return TrialField(key, short(path), kind, f"{about}: {path}", of, origin=origin[:-1])  # type: ignore[arg-type]

    def differs(self, field: TrialField) -> bool:
        """Whether the trials have several values of it."""
        if field.origin == "curve":
            return True  # nearly all do, and each is read when its values are asked for
        if field.origin != "trial":
            return field.key not in self._constant
        values = map(field.of, self.trials)
        first = next(values, None)
        return any(value != first for value in values)

    def find(self, name: str) -> TrialField:
        """The field of that name: a key, a path, the end of one path, or a curve, which means its last value.

        Raises:
            FieldError: there is none, or several paths end so.
        """
        if (
            found := self.fixed.get(_ALSO.get(name, name))
            or self._exact(name, SWEPT, LOGGED)
            or self._ending(name, SWEPT, LOGGED)
            or self._exact(name, CURVE)
        ):
            return found
        if found := self._exact(name, CONFIG) or self._ending(name, CONFIG):  # costly to list
            return found
        if found := self.curves.get(f"last.{name}"):
            return found
        sweeps = dict.fromkeys(trial.sweep for trial in self.trials)
        lists = f"`prunegpt sweep fields {next(iter(sweeps)) if len(sweeps) == 1 else 'SWEEP'}`"
        raise FieldError(unknown("field", name, self.names, lists))

    def _listed(self, origin: str) -> Mapping[str, TrialField]:
        of = {SWEPT: lambda: self.swept, LOGGED: lambda: self.logged, CURVE: lambda: self.curves}
        return of.get(origin, lambda: self.config)()

    def _exact(self, name: str, *origins: str) -> TrialField | None:
        asked = [(self._listed(origin), path) for origin in origins for path in (name, name.removeprefix(origin))]
        return next((fields[path] for fields, path in asked if path in fields), None)

    def _ending(self, name: str, *origins: str) -> TrialField | None:
        for origin in origins:
            ends = [field for path, field in self._listed(origin).items() if path.endswith(f".{name}")]
            if len(ends) > 1:
                named = listed((field.name for field in ends), _MOST_NAMED)
                raise FieldError(f"{name!r} could be one of {len(ends)} fields: {named}. Write more of its path.")
            if ends:
                return ends[0]
        return None

    def chosen(self, names: Sequence[str]) -> list[TrialField]:
        """The fields of these names, each once; commas separate several in one text.

        Raises:
            FieldError: see `find`.
        """
        asked = [name.strip() for text in names for name in text.split(",")]
        return list({(found := self.find(name)).key: found for name in asked if name}.values())

    @property
    def names(self) -> list[str]:
        """What fields are called in filters."""
        return list(dict.fromkeys([*self.fixed, *self.swept, *self.logged, *self.curves, *self.config]))


def ordered(trials: Sequence[TrialResult], field: TrialField, descending: bool) -> list[TrialResult]:
    """By a field: numbers first by size, then text; what has no value comes last, whichever the direction."""
    missing: list[TrialResult] = []
    present: list[tuple[tuple[bool, float, str], TrialResult]] = []
    for trial in trials:
        value = field.of(trial)
        if value is None or value in ("", []) or value != value:  # NaN is not itself
            missing.append(trial)
        elif isinstance(value, int | float):
            present.append(((False, value, ""), trial))
        else:
            present.append(((True, 0, str(value).casefold()), trial))
    present.sort(key=lambda pair: pair[0], reverse=descending)
    return [trial for _, trial in present] + missing


def short(path: str) -> str:
    """The end of a path, enough to know it by: stages.1.prune.sparsity becomes prune.sparsity."""
    return ".".join([part for part in path.split(".") if not part.isdigit()][-2:]) or path


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration by path; a list is one value, unless it holds mappings, such as stages."""
    for key, value in node.items():
        if isinstance(value, _SCALARS):
            yield f"{prefix}{key}", value
            continue
        items = {str(place): one for place, one in enumerate(value)} if isinstance(value, list | tuple) else value
        if isinstance(items, Mapping) and items and (items is value or isinstance(value[0], Mapping)):
            yield from _leaves(items, f"{prefix}{key}.")
        elif not isinstance(value, Mapping):
            yield f"{prefix}{key}", value


def _kind(values: Sequence[Any]) -> FieldKind:
    """What values are, None left out."""
    types = set(map(type, values))
    if types == {str}:
        return "text"
    if types <= {int, float}:
        values = list(set(values))  # most are alike
    if values and all(isinstance(value, bool) for value in values):
        return "flag"
    if any(isinstance(value, list | tuple) for value in values):
        return "list"
    numbers = [value for value in values if is_number(value)]
    others = [value for value in values if value in _NOT_FINITE or (isinstance(value, float) and math.isinf(value))]
    return "number" if numbers and len(numbers) + len(others) == len(values) else "text"
