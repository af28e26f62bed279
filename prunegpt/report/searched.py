"""The trials of one search: what it looks for, the axes of its space, what the objectives depend on."""

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult
from prunegpt.report.format import is_number
from prunegpt.report.logged import flat, metrics_of
from prunegpt.report.plot import escaped, said, short
from prunegpt.spec.metrics import Direction
from prunegpt.spec.search import Dimension, searches_of

VARIED = "varied"  # what trials are called together that no search has suggested
_FEWEST_IMPORTANT = 4  # trials from which importance says something
_WIDE = 30.0  # the largest value over the smallest from which an axis that no space declares is logarithmic
_ONE_AT_A_TIME = threading.Lock()  # Optuna imports its parts when first used: threads must not do that together


@dataclass(frozen=True)
class ValueAxis:
    """An axis of searched values: numbers, or a place for each distinct value of another kind."""

    path: str
    label: str
    log: bool
    low: float
    high: float
    choices: tuple[str, ...] = ()  # labels, where it is no axis of numbers

    def height(self, value: Any) -> float | None:
        """Where a value is on it: its logarithm on a logarithmic axis, its place among the choices."""
        if self.choices:
            return float(self.choices.index(said(value))) if said(value) in self.choices else None
        if not is_number(value) or (self.log and value <= 0):
            return None
        return math.log10(value) if self.log else float(value)

    def shown(self, value: Any) -> Any:
        """A value as an axis of Plotly takes it."""
        return self.height(value) if self.choices else value

    def positions(self, heights: Any) -> list[float]:
        """Heights as an axis of Plotly takes them."""
        return [10**one if self.log else one for one in heights.tolist()]

    @property
    def layout(self) -> dict[str, Any]:
        if self.choices:
            return {"tickvals": list(range(len(self.choices))), "ticktext": list(map(escaped, self.choices))}
        return {"type": "log"} if self.log else {}

    @property
    def dimension(self) -> dict[str, Any]:
        """As a dimension of parallel coordinates, in heights."""
        if self.choices:
            places = [float(place) for place in range(len(self.choices))]
            return {
                "log": False,
                "range": [-0.5, len(places) - 0.5],
                "tickvals": places,
                "ticktext": list(map(escaped, self.choices)),
            }
        ends = [math.log10(self.low), math.log10(self.high)] if self.log else [self.low, self.high]
        return {"log": self.log, "range": ends, **(self._decades if self.log else {})}

    @property
    def _decades(self) -> dict[str, Any]:
        powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
        values = sorted({self.low, self.high, *(10.0**power for power in powers)})
        return {"tickvals": [math.log10(value) for value in values], "ticktext": [f"{value:.3g}" for value in values]}


@dataclass(frozen=True)
class Searched:
    """The trials of a search, in its order; or those that a spec varies, whose only objective is perplexity.

    Of runs that W&B clients have logged, the settings are all of their config, and the objectives all of their metrics.
    """

    name: str
    objectives: Mapping[str, Direction]
    space: Mapping[str, Dimension]  # path -> what the search may try; empty where no search declares it
    trials: Sequence[TrialResult]

    def value(self, trial: TrialResult, metric: str) -> float | None:
        """The objective of a trial that has finished; None where it has none."""
        if trial.plan.foreign:
            found = dict(metrics_of(trial)).get(metric)
        else:
            found = trial.metrics.get(metric) if trial.state == "finished" else None
        return float(found) if isinstance(found, int | float) and is_number(found) else None

    @property
    def label(self) -> str:
        return self.name or VARIED

    def measured(self, metric: str) -> list[tuple[TrialResult, float]]:
        """The trials that have the objective, with it."""
        if metric not in self._measured:
            values = [(trial, self.value(trial, metric)) for trial in self.trials]
            self._measured[metric] = [(trial, value) for trial, value in values if value is not None]
        return self._measured[metric]

    @cached_property
    def _measured(self) -> dict[str, list[tuple[TrialResult, float]]]:
        return {}  # by metric, as several figures ask for the same

    def settings(self, trial: TrialResult) -> Mapping[str, Any]:
        """What was searched, by path."""
        return self._configs[trial.id] if trial.plan.foreign else trial.swept

    @cached_property
    def _configs(self) -> Mapping[int, Mapping[str, Any]]:
        return {trial.id: dict(flat(trial.config)) for trial in self.trials if trial.plan.foreign}

    def differing(self, trials: Sequence[TrialResult]) -> list[str]:
        """Paths with several values, in the order they are first met."""
        values: dict[str, set[str]] = {}
        for trial in trials:
            for path, value in self.settings(trial).items():
                values.setdefault(path, set()).add(repr(value))
        return [path for path, found in values.items() if len(found) > 1]

    @cached_property
    def paths(self) -> list[str]:
        """What differs between its trials."""
        return self.differing(self.trials)

    def axis(self, path: str) -> ValueAxis:
        """The axis of a searched value: as its space declares it, else as its values suggest."""
        values = [found[path] for trial in self.trials if path in (found := self.settings(trial))]
        present = [value for value in values if value is not None]
        label = short(path, self.paths)
        if not present or not all(is_number(value) for value in present):
            return ValueAxis(path, label, False, 0.0, 0.0, tuple(sorted({said(value) for value in values})))
        low, high = float(min(present)), float(max(present))
        declared = self.space.get(path)
        log = low > 0 and (declared.log if declared is not None else high / low >= _WIDE)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
        return ValueAxis(path, label, log, low, high)


def searches(trials: Sequence[TrialResult], spec: Mapping[str, Any]) -> list[Searched]:
    """The searches of a sweep, those of its stored spec first; what a spec varies is one without a name."""
    declared = searches_of(spec)
    own: dict[str, list[TrialResult]] = {name: [] for name in declared}
    for trial in trials:
        if trial.swept or trial.plan.foreign:
            own.setdefault(trial.plan.search, []).append(trial)
    found = []
    for name, some in own.items():
        search = declared.get(name)
        if search is not None:
            goals: dict[str, Direction] = {objective.metric: objective.wanted for objective in search.objectives}
        elif some and all(trial.plan.foreign for trial in some):
            names = dict.fromkeys(metric for trial in some for metric, value in metrics_of(trial) if is_number(value))
            goals = dict.fromkeys(names, "minimize")
        else:
            goals = {"perplexity": "minimize"}
        ordered = sorted(some, key=lambda trial: (trial.plan.number, trial.order, trial.id))
        if ordered and goals:
            found.append(Searched(name, goals, search.space if search else {}, ordered))
    return found


def important(searched: Searched, objective: str) -> tuple[list[TrialResult], list[str]]:
    """The trials and paths that importance is computed from: the most trials that have the same searched values.

    Raises:
        ReportError: there are too few, or their objectives do not differ.
    """
    values = {trial.id: value for trial, value in searched.measured(objective)}
    found = [trial for trial in searched.trials if trial.id in values]
    differing = searched.differing(found)
    alike: dict[tuple[str, ...], list[TrialResult]] = {}
    for trial in found:
        own = searched.settings(trial)
        alike.setdefault(tuple(path for path in differing if path in own), []).append(trial)
    enough = [some for some in alike.values() if len(some) >= _FEWEST_IMPORTANT and len(searched.differing(some)) > 1]
    whole = max(enough or alike.values(), key=len, default=[])
    paths = searched.differing(whole)
    if len(whole) < _FEWEST_IMPORTANT or not paths:
        raise ReportError(
            f"importance needs {_FEWEST_IMPORTANT} measured trials whose searched values differ; there are "
            f"{len(whole) if paths else 0} yet."
        )
    if len(paths) == 1:
        raise ReportError(f"importance needs two searched values to compare; {paths[0]} is the only one.")
    distinct = {values[trial.id] for trial in whole}
    if len(distinct) == 1:
        raise ReportError(
            f"importance needs trials whose {objective} differs; that of all {len(whole)} is {distinct.pop():.4g}."
        )
    return whole, paths


def importances(searched: Searched, objective: str) -> dict[str, float]:
    """The share of each searched value in what makes the best trials, by path, the greatest first; together 1.

    Raises:
        ReportError: see `important` and `ped_anova`.
    """
    trials, paths = important(searched, objective)
    settings = [{path: searched.settings(trial)[path] for path in paths} for trial in trials]
    values = {trial.id: value for trial, value in searched.measured(objective)}
    return ped_anova(settings, [values[trial.id] for trial in trials], searched.objectives[objective])


def ped_anova(
    settings: Sequence[Mapping[str, Any]], values: Sequence[float], direction: Direction = "minimize"
) -> dict[str, float]:
    """The share of each setting in what makes the best trials, the greatest first; together 1.

    Args:
        settings: path -> value, of each trial; all have the same paths, and each path several values.
        values: the objective of each trial.
        direction: minimize or maximize.

    Raises:
        ReportError: Optuna cannot compute it from these.
    """
    with _ONE_AT_A_TIME:
        try:
            return _computed(settings, values, direction)
        except Exception as error:  # of whatever kind: a figure is missing then, and the page shows the reason
            reason = str(error) or type(error).__name__
            raise ReportError(f"importance cannot be computed from these trials: {reason}") from error


def prepare() -> None:
    """Imports what `ped_anova` needs: Optuna's importance takes scikit-learn along, for over a second."""
    with _ONE_AT_A_TIME:
        import optuna.importance  # noqa: F401


def _computed(settings: Sequence[Mapping[str, Any]], values: Sequence[float], direction: Direction) -> dict[str, float]:
    import optuna

    class Finished(optuna.Study):
        """The trials as a study that is over: one that keeps its trials copies each three times, half a second here."""

        def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[optuna.trial.FrozenTrial]:
            return trials

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = {path: _distribution([one[path] for one in settings]) for path in settings[0]}
    numbers = {path for path, kind in kinds.items() if isinstance(kind, optuna.distributions.FloatDistribution)}
    asked = [{path: float(one[path]) if path in numbers else _text(one[path]) for path in kinds} for one in settings]
    more: dict[str, Any] = {"datetime_start": None, "datetime_complete": None, "user_attrs": {}, "system_attrs": {}}
    more |= {"state": optuna.trial.TrialState.COMPLETE, "distributions": kinds, "intermediate_values": {}}
    trials = [
        optuna.trial.FrozenTrial(number=number, trial_id=number, params=params, value=value, **more)
        for number, (params, value) in enumerate(zip(asked, values, strict=True))
    ]
    storage = optuna.storages.InMemoryStorage()
    finished = Finished(optuna.create_study(storage=storage, direction=direction).study_name, storage)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(finished, evaluator=evaluator))


def _distribution(values: Sequence[Any]) -> Any:
    """A range of numbers, logarithmic where it is wide; else a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(is_number(value) for value in values):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high / low >= _WIDE)
    return CategoricalDistribution(sorted({_text(value) for value in values}))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
