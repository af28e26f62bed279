"""What a trial's end means to a search: values, constraints, its curve over tokens, or that it failed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from prunegpt.points import Point
from prunegpt.records import EARLY_STOP, TrialResult
from prunegpt.spec.metrics import evaluation_of
from prunegpt.spec.search import SearchSpec, violations
from prunegpt.store import Store
from prunegpt.sweep.tokens import TokenClock


@dataclass(frozen=True)
class TrialReport:
    """What is reported to Optuna about a trial."""

    state: Literal["complete", "pruned", "fail"]
    values: tuple[float, ...] = ()  # one an objective, of a complete trial
    constraints: Mapping[str, float] = field(default_factory=dict)
    curve: Mapping[int, float] = field(default_factory=dict)  # tokens -> objective, of a pruned trial


FAILED = TrialReport("fail")


def outcome_of(
    spec: SearchSpec, result: TrialResult, curve: Callable[[], Mapping[int, float]] = dict[int, float]
) -> TrialReport:
    """What is reported to a search about a trial that has ended.

    A model that diverged is worse than any other, and reported so for a single objective; with several it is a
    failure, for a vector of infinities helps no sampler.

    Args:
        spec: the search.
        result: the trial.
        curve: gives tokens -> objective of a trial that was stopped early.
    """
    if result.state == "stopped" and result.reason == EARLY_STOP:
        return TrialReport("pruned", curve=curve() if len(spec.objectives) == 1 else {})
    if result.state not in ("finished", "diverged"):
        return FAILED
    metrics = result.metrics if result.state == "finished" else {}
    values = [metrics.get(objective.metric) for objective in spec.objectives]
    measured = [result.under(evaluation_of(metric)).evaluation for metric in spec.measured]
    diverged = result.state == "diverged" or any(found is not None and not found.finite for found in measured)
    if diverged and len(values) == 1 and values[0] is None:
        worst = math.inf if spec.objectives[0].wanted == "minimize" else -math.inf
        return TrialReport("complete", (worst,), dict.fromkeys(spec.constraints, math.inf))
    known = tuple(float(value) for value in values if value is not None)
    if len(known) < len(values):
        return FAILED
    return TrialReport("complete", known, violations(spec.constraints, metrics))


def clocked(result: TrialResult, name: str, store: Store) -> tuple[TokenClock, dict[int, float]]:
    """The tokens that a trial was trained on, and tokens -> value of one of its curves."""
    clock = TokenClock(result.plan)
    points: list[Point] = store.points(result.id, name)
    return clock, {clock.at(point): point.value for point in points if point.value is not None}


def objective_curve(spec: SearchSpec, result: TrialResult, store: Store) -> Mapping[int, float]:
    """Tokens -> objective: only perplexity is both an objective and a curve of the same measurement."""
    objective = spec.objectives[0].metric
    return clocked(result, objective, store)[1] if objective == "perplexity" else {}
