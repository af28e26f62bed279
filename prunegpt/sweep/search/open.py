"""The searches of a sweep, opened from what the store knows of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from prunegpt.records import TrialResult
from prunegpt.spec.plan import SearchPlan, SweepPlan, TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.search.objectives import clocked, objective_curve
from prunegpt.sweep.search.suggester import Search


class SuggestionPlanner(Protocol):
    """Resolves suggestions, see planning.resolve."""

    def suggested(self, search: SearchPlan, values: Mapping[str, object], number: int) -> TrialPlan:
        """The trial that a suggestion means."""


class Searches:
    """All searches of a sweep; the one with the fewest trials running suggests next. Used from one thread.

    Args:
        opened: opens them, in the sweep's order: not before the sweep begins, for what is put aside is written then,
            and until then another coordinator may have the store.
    """

    def __init__(self, opened: Callable[[], Sequence[Search]]) -> None:
        self._opened = opened
        self._searches: tuple[Search, ...] = ()

    def begin(self) -> None:
        """Asked once and first, when the coordinator has the root and the store knows how earlier trials ended."""
        self._searches = tuple(self._opened())

    def suggest(self) -> TrialPlan | None:
        """A trial to run now; None where there is none now. It may differ once a running trial has ended."""
        for search in sorted(self._searches, key=lambda search: search.running):
            trial = search.suggest()
            if trial is not None:
                return trial
        return None

    def tell(self, result: TrialResult) -> None:
        """A trial of the sweep has ended, one way or another."""
        for search in self._searches:
            search.tell(result)


def open_search(plan: SweepPlan, store: Store, planner: SuggestionPlanner) -> Searches:
    """The searches of a plan; they begin with the state of the store.

    Trials that a changed spec could not suggest are put aside. What `begin` raises is a PruneGPTError: a sampler cannot
    be made.
    """

    def opened() -> list[Search]:
        results = store.results(plan.name, shown=None)
        return [_open(plan, search, store, planner, results) for search in plan.searches]

    return Searches(opened)


def _open(
    plan: SweepPlan, search: SearchPlan, store: Store, planner: SuggestionPlanner, results: Sequence[TrialResult]
) -> Search:
    def curve(result: TrialResult) -> Mapping[int, float]:
        return objective_curve(search.spec, result, store)

    def tokens(result: TrialResult) -> int:
        return clocked(result, "loss", store)[0].total

    own = [result for result in results if result.plan.search == search.name]
    opened = Search(search, own, planner.suggested, curve=curve, tokens=tokens)
    if own:
        store.keep_suggested(
            plan.name, search.name, {result.name for result in own if result.plan.number in opened.kept}
        )
    return opened
