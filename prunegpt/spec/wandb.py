"""A W&B sweep config as a spec.

`parameters` name what is varied, by paths as in `vary`. What they vary is in the same file, under
`prunegpt`, as base, trials, tables and so on; or in the spec that `program` names. Of several trials the parameter
`trial` says which.
"""

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prunegpt.errors import unknown
from prunegpt.spec.metrics import MEASURED
from prunegpt.spec.naming import slug, trial_name
from prunegpt.spec.paths import set_path
from prunegpt.spec.wandb_parameters import Parameter, ParameterError, canonical, parameters

FieldPath = tuple[str | int, ...]

TRIAL = "trial"  # the parameter that chooses among trials
STOP = "wandb_hyperband"  # the early stop that decides as W&B does
SAMPLERS = {"random": "random", "bayes": "tpe"}  # method -> sampler, where `prunegpt: {sampler: NAME}` says no other
_BODY = ("name", "title", "base", "trials", "tables", "figures", "failures", "launcher", "tracking", "sampler", "seed")
_KEYS = ("method", "parameters", "program", "prunegpt", "metric", "early_terminate", "run_cap", "name", "description")
_PASSED_OVER = ("project", "entity", "command", "apiVersion", "kind", "controller")  # do not affect the trials
_ELSEWHERE = {
    "scheduler": "a W&B scheduler",
    "metrics": "several metrics",
    "job": "a W&B Launch job",
    "image_uri": "an image of W&B Launch",
}
MAX_POINTS = 10_000  # trials of one sweep
DEFAULT_STOP = {"eta": 3, "strict": True}


@dataclass
class Converted:
    """A spec that a sweep config means.

    Args:
        spec: as a spec file would hold it.
        problems: place in the config, and what is wrong there.
        places: place in the spec -> place in the config it came from.
    """

    spec: dict[str, Any]
    problems: list[tuple[FieldPath, str]] = field(default_factory=list)
    places: dict[FieldPath, FieldPath] = field(default_factory=dict)


def is_sweep(data: Mapping[str, Any]) -> bool:
    """Whether data is a W&B sweep config and not a spec."""
    return "method" in data and "trials" not in data and "base" not in data


def to_spec(data: Mapping[str, Any], name: str, read: Callable[[str], Mapping[str, Any]]) -> Converted:
    """The spec that a sweep config means.

    Args:
        name: of the sweep, where the config gives none.
        read: gives the content of the spec that `program` names, or of an already converted one.
    """
    done = Converted({})
    _Conversion(data, done, read).run(name)
    return done


class _Conversion:
    def __init__(self, data: Mapping[str, Any], done: Converted, read: Callable[[str], Mapping[str, Any]]) -> None:
        self.data = data
        self.done = done
        self.read = read

    def note(self, message: str, *place: str | int) -> None:
        self.done.problems.append((place, message))

    def run(self, name: str) -> None:
        self._check_keys()
        body = self._body()
        found, problems = parameters(self.data.get("parameters"))
        self.done.problems += problems
        choices = next((one for one in found if one.path == TRIAL), None)
        found = [one for one in found if one is not choices]
        trials = self._trials(body, choices)
        spec = {key: copy.deepcopy(value) for key, value in body.items() if key not in ("sampler", "seed", "trials")}
        own = "prunegpt" in self.data  # a spec that `program` names is another sweep
        given = str(self.data.get("name") or (body.get("name") if own else None) or name)
        self.done.spec = spec
        spec["name"] = slug(given)
        title = self.data.get("description") or spec.get("title") or given
        spec["title"] = str(title)
        spec.setdefault("base", {})
        spec["trials"] = []
        if "tracking" not in spec and {"project", "entity"} & set(self.data):
            spec["tracking"] = {"wandb": {key: self.data[key] for key in ("project", "entity") if key in self.data}}
        if not problems:
            for trial in trials:
                spec["trials"] += self._varied(trial, found, body, len(spec["trials"]))
        self._early_stop(spec)
        self._target(spec)

    # -- what is varied -------------------------------------------------------------------------------------------

    def _check_keys(self) -> None:
        for key in self.data:
            if key in _ELSEWHERE:
                self.note(f"{_ELSEWHERE[key]} can only be run by W&B. Remove {key}.", key)
            elif key not in (*_KEYS, *_PASSED_OVER):
                self.note(unknown("key of a W&B sweep", key, [*_KEYS, *_PASSED_OVER]), key)
        self.done.problems += problems_of(self.data)

    def _body(self) -> Mapping[str, Any]:
        body, program = self.data.get("prunegpt"), self.data.get("program")
        if body is None and isinstance(program, str) and program.endswith((".yaml", ".yml")):
            return self.read(program)
        if body is None and program is not None:
            self.note(
                f"program must be a spec (.yaml) whose trials are varied, got {program!r}. Name one, or put base and "
                "trials under a key `prunegpt`; scripts that are no spec are run by `wandb agent` alone.",
                "program",
            )
        if body is not None and not isinstance(body, Mapping):
            self.note(f"prunegpt must be a mapping with base, trials and so on, got {body!r}.", "prunegpt")
        if not isinstance(body, Mapping):
            return {}
        for key in body:
            if key not in _BODY:
                self.note(unknown("key", str(key), _BODY), "prunegpt", key)
            self.done.places[(key,)] = ("prunegpt", key)
        return body

    def _trials(self, body: Mapping[str, Any], choices: Parameter | None) -> list[dict[str, Any]]:
        """The trials to vary: the only one, or those that the parameter `trial` names."""
        listed = body.get("trials") or [{"name": "trial"}]
        if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
            self.note("trials must be a list of mappings.", "prunegpt", "trials")
            return []
        if choices is None:
            if len(listed) > 1:
                names = ", ".join(str(one.get("name")) for one in listed)
                self.note(
                    f"of several trials the parameter `trial` must say which: trial: {{values: [...]}} of {names}.",
                    "parameters",
                )
            return [dict(one) for one in listed[:1]]
        if self.data.get("method") != "grid":
            self.note("random and bayes vary one trial; trial chooses. Use method grid.", *choices.place)
        found = []
        for name in choices.listed() if not choices.spec.get("min") else []:
            trial = next((one for one in map(dict, listed) if name in _groups(one)), None)
            if trial is None:
                valid = [group for one in listed for group in _groups(one)]
                self.note(unknown("trial", str(name), valid), *choices.place)
            else:
                found.append(_groups(trial)[name])
        return found

    def _varied(
        self, trial: dict[str, Any], found: Sequence[Parameter], body: Mapping[str, Any], first: int
    ) -> list[dict[str, Any]]:
        trial = copy.deepcopy(trial)
        base = body.get("base") or {}
        if isinstance(base, Mapping) and "stages" in base and "stages" not in trial:
            trial["stages"] = copy.deepcopy(base["stages"])
        for one in sorted((one for one in found if one.constant), key=lambda one: one.path.count(".")):
            try:
                set_path(trial, one.path.split("."), copy.deepcopy(one.spec["value"]))
            except ValueError as error:
                self.note(f"{one.path}: {error}", *one.place)
            self.done.places[("trials", first, *_steps(one.path))] = one.place
        free = [one for one in found if not one.constant]
        try:
            grid = self.data.get("method") == "grid"
            told = self._grid(trial, free) if grid else self._search(trial, free, body)
        except ParameterError as error:
            place = next((one.place for one in free if one.path in str(error)), ("parameters",))
            self.note(str(error), *place)
            return []
        for index in range(first, first + len(told)):
            for one in free:
                self.done.places[("trials", index, "vary", one.path)] = one.place
                self.done.places[("trials", index, "search", "space", one.path)] = one.place
            self.done.places[("trials", index, "search", "n_trials")] = ("run_cap",)
            self.done.places[("trials", index, "search", "objectives")] = ("metric",)
        return told

    def _grid(self, trial: dict[str, Any], free: Sequence[Parameter]) -> list[dict[str, Any]]:
        lists = {one.path: one.listed() for one in free}
        cap = self.data.get("run_cap")
        if type(cap) is int and 0 < cap < math.prod(map(len, lists.values())):
            points = itertools.islice(itertools.product(*lists.values()), min(cap, MAX_POINTS))
            return [_fixed(trial, dict(zip(lists, point, strict=True))) for point in points]
        return [{**trial, "vary": {**(trial.get("vary") or {}), **lists}}] if lists else [trial]

    def _search(
        self, trial: dict[str, Any], free: Sequence[Parameter], body: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        method, cap = self.data.get("method"), self.data.get("run_cap")
        if "search" in trial or "vary" in trial:
            raise ParameterError("a trial that parameters vary may have neither vary nor search of its own.")
        if not free:
            raise ParameterError("random and bayes need a parameter that is not constant.")
        if type(cap) is not int or cap < 1:
            raise ParameterError("a random or bayes sweep must end: give run_cap, the number of its trials.")
        dimensions = {one.path: one.dimension() for one in free}
        without = [one for one in free if dimensions[one.path] is None]
        seed = body.get("seed", 0)
        if without and method == "random":
            return [_fixed(trial, point) for point in drawn(free, min(cap, MAX_POINTS), seed)]
        if without:
            raise ParameterError(
                f"bayes takes values, uniform, int_uniform, q_uniform and log_uniform_values; {without[0].path} is "
                f"{without[0].distribution}. Choose one of those, or method random."
            )
        metric = self.data.get("metric") or {"name": "perplexity"}
        search = {
            "space": dimensions,
            "sampler": body.get("sampler", SAMPLERS.get(str(method), "tpe")),
            "seed": seed,
            "objectives": [{"metric": metric.get("name"), "direction": metric.get("goal", "minimize")}],
            "n_trials": cap,
        }
        return [{**trial, "search": search}]

    def _early_stop(self, spec: dict[str, Any]) -> None:
        given, metric = self.data.get("early_terminate"), self.data.get("metric") or {}
        if given is None or any(place[:1] in (("early_terminate",), ("metric",)) for place, _ in self.done.problems):
            return
        self.done.places[("early_stop",)] = ("early_terminate",)
        if "name" not in metric:
            self.note("early_terminate needs a metric: give metric: {name: perplexity, goal: minimize}.", "metric")
        elif metric.get("goal") == "maximize":
            self.note("early_terminate needs a curve whose lower values are better here, such as perplexity.", "metric")
        else:
            options = {**DEFAULT_STOP, **{key: value for key, value in given.items() if key != "type"}}
            # `loss` of a finished trial is measured, but the curve of that name is the loss that training minimizes,
            # which distillation blends. The curve that falls and rises with all measured metrics is the perplexity.
            curve = "perplexity" if metric["name"] in MEASURED else metric["name"]
            spec["early_stop"] = {"method": STOP, "metric": curve, "options": options}

    def _target(self, spec: dict[str, Any]) -> None:
        metric = self.data.get("metric")
        if not isinstance(metric, Mapping) or metric.get("target") is None:
            return
        self.done.places[("target",)] = ("metric", "target")
        self.done.places[("target", "metric")] = ("metric", "name")
        direction = metric.get("goal", "minimize")  # W&B's default, whatever the metric
        spec["target"] = {"metric": metric.get("name"), "value": metric["target"], "direction": direction}


def problems_of(data: Mapping[str, Any]) -> Iterator[tuple[FieldPath, str]]:
    """What is wrong with the method, the metric, the cap and the early stop of a sweep config, and where."""
    if data.get("method") not in ("grid", "random", "bayes"):
        yield ("method",), unknown("method", str(data.get("method")), ["grid", "random", "bayes"])
    cap = data.get("run_cap")
    if cap is not None and (type(cap) is not int or cap < 1):
        yield ("run_cap",), f"run_cap must be a whole number of at least 1, got {cap!r}."
    metric = data.get("metric")
    if metric is not None and not (isinstance(metric, Mapping) and isinstance(metric.get("name"), str)):
        yield ("metric",), "metric must be a mapping with a name, such as {name: perplexity, goal: minimize}."
    elif metric is not None:
        known = ("name", "goal", "target", "impute", "impute_while_running")
        for key in metric:
            if key not in known:
                yield ("metric", key), unknown("key of metric", str(key), known)
        if not _is_number(target := metric.get("target", 0)) and target is not None:
            yield ("metric", "target"), f"target must be a number, got {target!r}."
        if metric.get("goal", "minimize") not in ("minimize", "maximize"):
            yield ("metric", "goal"), unknown("goal", str(metric["goal"]), ["minimize", "maximize"])
    if (stop := data.get("early_terminate")) is not None and (problem := _stop_problem(stop)):
        yield ("early_terminate",), problem


def _stop_problem(given: Any) -> str:
    """What is wrong with an `early_terminate`: it is not hyperband, or lacks min_iter and max_iter with s."""
    known = ("min_iter", "max_iter", "s", "eta", "strict")
    if not isinstance(given, Mapping) or given.get("type") != "hyperband":
        return "early_terminate must be {type: hyperband, min_iter: N} or the like."
    for key in given:
        if key not in (*known, "type"):
            return unknown("key of early_terminate", str(key), known)
    if "min_iter" not in given and not {"max_iter", "s"} <= set(given):
        return "early_terminate needs min_iter, or max_iter and s."
    for key in ("min_iter", "max_iter", "s", "eta"):
        if key in given and not (_is_number(given[key]) and given[key] >= 0):
            return f"{key} of early_terminate must be a number of at least 0, got {given[key]!r}."
    if given.get("eta", 3) <= 1:
        return f"eta of early_terminate must be above 1, got {given['eta']}."
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def drawn(free: Sequence[Parameter], count: int, seed: int) -> list[dict[str, Any]]:
    """A number of different random points; fewer if there are not enough."""
    source = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(20 * count):
        point = {one.path: one.draw(source.uniform(1e-12, 1 - 1e-12)) for one in free}
        found.setdefault(canonical(point), point)
        if len(found) == count:
            break
    return list(found.values())


def _fixed(trial: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """A trial at one point: a `vary` of single values, so that its name says them."""
    vary = {**(trial.get("vary") or {}), **{path: [value] for path, value in point.items()}}
    return {**copy.deepcopy(dict(trial)), "vary": vary}


def _groups(trial: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the parameter `trial` may name: a trial by its template, or one point of what it varies."""
    found = {str(trial.get("name")): dict(trial)}
    vary = trial.get("vary")
    if isinstance(vary, Mapping) and all(isinstance(values, list) for values in vary.values()):
        for values in itertools.islice(itertools.product(*vary.values()), MAX_POINTS):
            point = dict(zip(vary, values, strict=True))
            with suppress(ValueError):  # a bad template is reported when the trial is expanded
                found.setdefault(trial_name(str(trial.get("name")), point), _fixed(trial, point))
    return found


def _steps(path: str) -> list[str | int]:
    return [int(step) if step.isdigit() else step for step in path.split(".")]
