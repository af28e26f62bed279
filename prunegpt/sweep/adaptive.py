"""What the coordinator asks of whoever suggests trials, gives them up early, or tells others of them."""

from collections.abc import Sequence
from typing import Protocol

from prunegpt.records import Point, TrialResult
from prunegpt.spec.plan import TrialPlan
from prunegpt.sweep.events import Event


class Suggester(Protocol):
    """Adds trials to a sweep while it runs. Used from one thread."""

    def begin(self) -> None:
        """Asked once and first, when this coordinator has the root and the store knows how earlier trials ended.

        Earlier suggestions that are not wanted any more are put aside now, see `Store.keep_suggested`.
        """
        ...

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


class Tracker(Protocol):
    """Is told all that happens, to tell others. Used from one thread, and must not keep it waiting."""

    def event(self, event: Event) -> None:
        """Something happened."""
        ...

    def points(self, trial: TrialPlan, points: Sequence[Point]) -> None:
        """New points of a running trial, in order."""
        ...


class NoSuggester:
    """A sweep of fixed trials."""

    def begin(self) -> None:
        return None

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


class NoTracker:
    """Nobody else is told."""

    def event(self, event: Event) -> None:
        return None

    def points(self, trial: TrialPlan, points: Sequence[Point]) -> None:
        return None
