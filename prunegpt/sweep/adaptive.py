"""What the coordinator asks of whoever suggests trials, and of whoever gives them up early."""

from collections.abc import Sequence
from typing import Protocol

from prunegpt.records import Point, TrialResult
from prunegpt.spec.plan import TrialPlan


class Suggester(Protocol):
    """Adds trials to a sweep while it runs. Used from one thread."""

    def suggest(self) -> TrialPlan | None:
        """A trial to run now; None where there is none now. It may differ once a running trial has ended."""
        ...

    def tell(self, result: TrialResult) -> None:
        """A trial of the sweep has ended, one way or another; trials that it did not suggest are passed over."""
        ...


class EarlyStopper(Protocol):
    """Gives up trials that do badly. Used from one thread."""

    def observe(self, trial: TrialPlan, points: Sequence[Point]) -> str | None:
        """Takes new points of a running trial, in order; why it should be given up now, or None."""
        ...

    def end(self, trial: TrialPlan, state: str) -> None:
        """A trial has ended in this state."""
        ...


class NoSuggester:
    """A sweep of fixed trials."""

    def suggest(self) -> TrialPlan | None:
        return None

    def tell(self, result: TrialResult) -> None:
        return None


class NoEarlyStopper:
    """Every trial runs to its end."""

    def observe(self, trial: TrialPlan, points: Sequence[Point]) -> str | None:
        return None

    def end(self, trial: TrialPlan, state: str) -> None:
        return None
