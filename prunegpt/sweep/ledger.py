"""What has become of each trial in one run of a sweep: stored, counted, and told to whoever wants to know."""

from collections.abc import Callable, Iterable, Sequence

from prunegpt.launch.log import LOG
from prunegpt.records import EARLY_STOP, ComparisonKey, StageRecord, TrialResult, TrialState, chain_metrics
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.search import MEASURED
from prunegpt.spec.target import TargetSpec
from prunegpt.store import SavedTrial, Store
from prunegpt.sweep.adaptive import EarlyStopper, NoSuggester, Suggester, Tracker
from prunegpt.sweep.attempt import Attempt
from prunegpt.sweep.board import name_of
from prunegpt.sweep.events import CacheHit, Event, SweepOutcome, TargetReached, TrialFailed, TrialFinished
from prunegpt.sweep.failures import Verdict

SETTLED = ("finished", "diverged", "stopped")  # states of a trial that another run does not change


class Ledger:
    """The trials of a run by SWEEP/TRIAL.

    Args:
        saved: all trials of the plan, to be run or not.
        wanted: those that were asked for.
        target: what is good enough.
    """

    def __init__(
        self,
        root: Root,
        store: Store,
        saved: Iterable[SavedTrial],
        wanted: Iterable[SavedTrial],
        *,
        on_event: Callable[[Event], None],
        suggester: Suggester,
        early_stopper: EarlyStopper,
        tracker: Tracker,
        target: TargetSpec | None = None,
    ) -> None:
        self._root = root
        self._store = store
        self._on_event = on_event
        self._suggester = suggester
        self._early_stopper = early_stopper
        self._tracker = tracker
        self.plans = {name_of(trial.plan): trial.plan for trial in saved}
        self.ids = {name_of(trial.plan): trial.id for trial in saved}
        self.states: dict[str, TrialState] = {name_of(trial.plan): trial.state for trial in saved}
        self.why: dict[str, str] = {}  # trial -> what it failed with
        self.order: list[str] = []  # trials that this run is about, in spec order; suggestions behind them
        self._unchanged = [name_of(trial.plan) for trial in wanted if trial.state in SETTLED]
        self._finished: set[str] = set()
        self._cached: set[str] = set()
        self._failed: set[str] = set()
        self._given_up: set[str] = set()
        self._target = target
        self._measured: ComparisonKey | None = None  # of the first trial that was compared with the target
        self.reached = ""  # the trial that reached the target

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Trials that were asked for and need nothing."""
        return tuple(self._unchanged)

    def look_for_target(self, sweep: str) -> None:
        """An earlier run may have reached the target."""
        for result in self._store.results(sweep) if self._target else ():
            self._compare(result)

    def tell(self, event: Event) -> None:
        """To the listener and the tracker."""
        self._on_event(event)
        self._tracker.event(event)

    def suggested(self, trial: TrialPlan) -> bool:
        """Saves a suggested trial; whether it is to be run. One that is settled already is told at once."""
        saved = self._store.add_trial(trial)
        name = name_of(trial)
        self.plans[name], self.ids[name], self.states[name] = trial, saved.id, saved.state
        if saved.state in SETTLED:
            self._tell_result(trial, saved.state)
            return False
        self.order.append(name)
        return True

    def again(self, name: str) -> TrialPlan | None:
        """A trial that has ended shall run once more; None where this run does not know it."""
        trial = self.plans.get(name)
        if trial is not None:
            self.states[name] = "waiting"
            self._failed.discard(name)
            self._given_up.discard(name)
            self._unchanged = [other for other in self._unchanged if other != name]
            if name not in self.order:
                self.order.append(name)
        return trial

    def endings(self, trial: TrialPlan) -> list[tuple[str, str]]:
        """Reason and outcome of the trial's attempts, oldest first."""
        return self._store.endings(self.ids[name_of(trial)])

    def from_cache(self, trial: TrialPlan, stages: Sequence[StageRecord]) -> None:
        """A trial needed no worker."""
        name = name_of(trial)
        self._store.conclude(self.ids[name], "finished", reason="cache", stages=stages)
        self.states[name] = "finished"
        self._cached.add(name)
        self.tell(CacheHit(name, len(stages), *figures(stages)))
        self._tell_result(trial, "finished")

    def cannot(self, trial: TrialPlan, reason: str, message: str, *, state: TrialState = "failed") -> None:
        """A trial ends without a worker: it can never start, or shall not."""
        name = name_of(trial)
        self._store.conclude(self.ids[name], state, reason=reason, error=message)
        self.states[name], self.why[name] = state, message
        self._failed.add(name)
        self.tell(TrialFailed(name, 0, state, reason, message, "", retried=False))
        self._tell_result(trial, state)

    def settle(self, attempt: Attempt, verdict: Verdict) -> None:
        """An attempt has ended."""
        name, record, state = name_of(attempt.trial), verdict.record, verdict.state
        finished = state == "finished"
        log = "" if finished else attempt.last_words()
        self._store.finish_attempt(record, state=state, log=log, retried=verdict.retried)
        self.states[name] = state
        if finished:
            self._finished.add(name)
            seconds = max(0.0, record.ended - record.started)  # a clock may have been set back
            self.tell(TrialFinished(name, attempt.number, seconds, *figures(record.stages)))
        else:
            file = str((attempt.folder / LOG).relative_to(self._root.path))
            self.tell(
                TrialFailed(name, attempt.number, state, record.reason, record.error, file, retried=verdict.retried)
            )
        if state != "waiting":
            if not finished:
                self.why[name] = record.error
                (self._given_up if record.reason == EARLY_STOP else self._failed).add(name)
            self._tell_result(attempt.trial, state)

    def _tell_result(self, trial: TrialPlan, state: TrialState) -> None:
        self._early_stopper.end(trial, state)
        if self._target is None and isinstance(self._suggester, NoSuggester):
            return
        result = self._store.result(self.ids[name_of(trial)])
        self._suggester.tell(result)
        self._compare(result)

    def _compare(self, result: TrialResult) -> None:
        """Notes the first trial of the sweep that reaches the target, of those that are measured alike."""
        if self._target is None or self.reached or result.implicit or result.state != "finished":
            return
        if self._target.metric in MEASURED and result.measured:
            self._measured = self._measured or result.measured.comparison_key
            if result.measured.comparison_key != self._measured:
                return
        metrics = chain_metrics(result.stages)
        if self._target.reached(metrics):
            self.reached = f"{result.sweep}/{result.name}"
            value = metrics[self._target.metric]
            assert value is not None
            self.tell(TargetReached(self.reached, self._target.metric, value, self._target.value))

    def outcome(self, sweep: str, waiting: Iterable[str], *, interrupted: bool) -> SweepOutcome:
        """What the run came to."""

        def ordered(names: set[str]) -> tuple[str, ...]:
            return tuple(name for name in self.order if name in names)

        return SweepOutcome(
            sweep=sweep,
            finished=ordered(self._finished),
            cached=ordered(self._cached),
            unchanged=self.unchanged,
            failed=ordered(self._failed),
            given_up=ordered(self._given_up),
            waiting=tuple(waiting),
            interrupted=interrupted,
            reached=self.reached,
        )


def figures(stages: Sequence[StageRecord]) -> tuple[float | None, float | None]:
    """Perplexity and sparsity after the last stage."""
    if not stages:
        return None, None
    measured, counted = stages[-1].evaluation, stages[-1].sparsity
    return (measured.perplexity if measured else None), (counted.pruned if counted else None)
