"""Searches and early stopping whose trials fake workers run."""

from collections.abc import Mapping, Sequence
from typing import Any

from prunegpt.planning.resolve import Planner
from prunegpt.points import Point
from prunegpt.records import TrialResult
from prunegpt.spec.plan import SearchPlan, SweepPlan, TrialPlan
from prunegpt.spec.search import SearchSpec
from tests.support.sweep_plans import make_plan, make_trial


class Faked:
    """A planner whose trials fake workers can run."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    @property
    def plan(self) -> SweepPlan:
        trials = tuple(_faked(trial) for trial in self._planner.plan.trials)
        return self._planner.plan.model_copy(update={"trials": trials})

    def suggested(self, search: SearchPlan, values: Mapping[str, Any], number: int) -> TrialPlan:
        return _faked(self._planner.suggested(search, values, number))


def _faked(trial: TrialPlan) -> TrialPlan:
    return trial.model_copy(update={"config": {**trial.config, "fake": {}}})


class Suggestions:
    """Suggests these trials, each when as many as stand beside it have been told."""

    def __init__(self, *trials: tuple[int, TrialPlan]) -> None:
        self.left = list(trials)
        self.told: list[TrialResult] = []

    def begin(self) -> None:
        return None

    def suggest(self) -> TrialPlan | None:
        if self.left and len(self.told) >= self.left[0][0]:
            return self.left.pop(0)[1]
        return None

    def tell(self, result: TrialResult) -> None:
        self.told.append(result)


class GiveUp:
    """Gives up a trial of that name at its first point in a stage that is not the first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ended: list[tuple[str, str]] = []

    def observe(self, trial: TrialPlan, points: Sequence[Point]) -> str | None:
        bad = trial.name == self.name and any(point.stage for point in points)
        return "worse than the median of the others at 100 tokens." if bad else None

    def end(self, trial: TrialPlan, state: str) -> None:
        self.ended.append((trial.name, state))


def suggestion(name: str, chain: str, **fake: Any) -> TrialPlan:
    return make_trial(name, chain, order=9, **fake).model_copy(update={"search": "found-{lr}"})


def searched(*trials: TrialPlan) -> Any:
    spec = SearchSpec(space={"base.train.learning_rate": {"low": 0.1, "high": 1.0}}, n_trials=9)
    search = SearchPlan(name="found-{lr}", index=1, order=1, spec=spec)
    return make_plan(*trials).model_copy(update={"searches": (search,)})
