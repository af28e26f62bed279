"""What a search learns from a trial that was stopped early: its curve over tokens."""

from collections.abc import Mapping

from prunegpt.points import Point
from prunegpt.records import TrialResult
from prunegpt.spec.search import SearchSpec
from prunegpt.store import Store
from prunegpt.sweep.tokens import TokenClock


def clocked(result: TrialResult, name: str, store: Store) -> tuple[TokenClock, dict[int, float]]:
    """The tokens that a trial was trained on, and tokens -> value of one of its curves."""
    clock = TokenClock(result.plan)
    points: list[Point] = store.points(result.id, name)
    return clock, {clock.at(point): point.value for point in points if point.value is not None}


def objective_curve(spec: SearchSpec, result: TrialResult, store: Store) -> Mapping[int, float]:
    """Tokens -> objective: only perplexity is both an objective and a curve of the same measurement."""
    objective = spec.objectives[0].metric
    return clocked(result, objective, store)[1] if objective == "perplexity" else {}
