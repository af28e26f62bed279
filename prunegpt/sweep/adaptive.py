"""What the coordinator asks of whoever suggests trials."""

from typing import Protocol

from prunegpt.records import TrialResult
from prunegpt.spec.plan import TrialPlan


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


class NoSuggester:
    """A sweep of fixed trials."""

    def begin(self) -> None:
        return None

    def suggest(self) -> TrialPlan | None:
        return None

    def tell(self, result: TrialResult) -> None:
        return None
