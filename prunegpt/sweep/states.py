"""The state of each trial in one run of a sweep: stored, counted, and reported as events."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

from prunegpt.launch.log import LOG
from prunegpt.records import EARLY_STOP, ComparisonKey, StageRecord, TrialResult, TrialState
from prunegpt.root import Root
from prunegpt.spec.metrics import evaluation_of, is_measured
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.search import TargetSpec, broken
from prunegpt.store import SavedTrial, Store
from prunegpt.sweep.attempt import Attempt
from prunegpt.sweep.events import CacheHit, Event, SweepOutcome, TargetReached, TrialFailed, TrialFinished
from prunegpt.sweep.failures import Verdict
from prunegpt.sweep.scheduler import name_of

if TYPE_CHECKING:
    from prunegpt.sweep.early_stop import CurveStopper
    from prunegpt.sweep.search.open import Searches

SETTLED = ("finished", "diverged", "stopped")  # states of a trial that another run does not change


@dataclass
class TrialStates:
    """The trials of a run by SWEEP/TRIAL.

    Args:
        saved: all trials of the plan, to be run or not.
        wanted: those that were asked for.
        target: what is good enough.
        constraints: of all searches: what a trial that reaches the target fulfils.
    """

    root: Root
    store: Store
    saved: InitVar[Iterable[SavedTrial]]
    wanted: InitVar[Iterable[SavedTrial]]
    on_event: Callable[[Event], None]
    searches: "Searches | None" = None
    early_stopper: "CurveStopper | None" = None
    target: TargetSpec | None = None
    constraints: tuple[str, ...] = ()
    plans: dict[str, TrialPlan] = field(init=False)
    ids: dict[str, int] = field(init=False)
    states: dict[str, TrialState] = field(init=False)
    why: dict[str, str] = field(default_factory=dict)  # trial -> what it failed with
    order: list[str] = field(default_factory=list)  # those this run is about, in spec order; suggestions behind them
    reached: str = ""  # the trial that reached the target

    def __post_init__(self, saved: Iterable[SavedTrial], wanted: Iterable[SavedTrial]) -> None:
        known = {name_of(trial.plan): trial for trial in saved}
        self.plans = {name: trial.plan for name, trial in known.items()}
        self.ids = {name: trial.id for name, trial in known.items()}
        self.states = {name: trial.state for name, trial in known.items()}
        self._unchanged = [name_of(trial.plan) for trial in wanted if trial.state in SETTLED]
        self._finished: set[str] = set()
        self._cached: set[str] = set()
        self._failed: set[str] = set()
        self._given_up: set[str] = set()
        self._measured: ComparisonKey | None = None  # of the first trial that was compared with the target

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Trials that were asked for and need nothing."""
        return tuple(self._unchanged)

    def look_for_target(self, sweep: str) -> None:
        """An earlier run may have reached the target."""
        for result in self.store.results(sweep) if self.target else ():
            self._compare(result)

    def suggested(self, trial: TrialPlan) -> bool:
        """Saves a suggested trial; whether it is to be run. One that is finished already is reported at once."""
        saved = self.store.add_trial(trial)
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
        return self.store.endings(self.ids[name_of(trial)])

    def from_cache(self, trial: TrialPlan, stages: Sequence[StageRecord]) -> None:
        """A trial needed no worker."""
        name = name_of(trial)
        self.store.conclude(self.ids[name], "finished", reason="cache", stages=stages)
        self.states[name] = "finished"
        self._cached.add(name)
        self.on_event(CacheHit(name, len(stages), *figures(stages)))
        self._tell_result(trial, "finished")

    def cannot(self, trial: TrialPlan, reason: str, message: str, *, state: TrialState = "failed") -> None:
        """A trial ends without a worker: it can never start, or shall not."""
        name = name_of(trial)
        self.store.conclude(self.ids[name], state, reason=reason, error=message)
        self.states[name], self.why[name] = state, message
        self._failed.add(name)
        self.on_event(TrialFailed(name, 0, state, reason, message, "", retried=False))
        self._tell_result(trial, state)

    def settle(self, attempt: Attempt, verdict: Verdict) -> None:
        """An attempt has ended."""
        name, record, state = name_of(attempt.trial), verdict.record, verdict.state
        finished = state == "finished"
        log = "" if finished else attempt.last_words()
        self.store.finish_attempt(record, state=state, log=log, retried=verdict.retried)
        self.states[name] = state
        if finished:
            self._finished.add(name)
            seconds = max(0.0, record.ended - record.started)  # a clock may have been set back
            self.on_event(TrialFinished(name, attempt.number, seconds, *figures(record.stages)))
        else:
            file = str((attempt.folder / LOG).relative_to(self.root.path))
            self.on_event(
                TrialFailed(name, attempt.number, state, record.reason, record.error, file, retried=verdict.retried)
            )
        if state != "waiting":
            if not finished:
                self.why[name] = record.error
                (self._given_up if record.reason == EARLY_STOP else self._failed).add(name)
            self._tell_result(attempt.trial, state)

    def _tell_result(self, trial: TrialPlan, state: TrialState) -> None:
        if self.early_stopper is not None:
            self.early_stopper.end(trial, state)
        if self.target is None and self.searches is None:
            return
        result = self.store.result(self.ids[name_of(trial)])
        if self.searches is not None:
            self.searches.tell(result)
        self._compare(result)

    def _compare(self, result: TrialResult) -> None:
        """Notes the first trial of the sweep that reaches the target, of those that are measured alike."""
        if self.target is None or self.reached or result.implicit or result.state != "finished":
            return
        measured = result.under(evaluation_of(self.target.metric)).measured
        if is_measured(self.target.metric) and measured:
            self._measured = self._measured or measured.comparison_key
            if measured.comparison_key != self._measured:
                return
        metrics = result.metrics
        constraints = result.plan.constraints if result.plan.search else self.constraints
        if self.target.reached(metrics) and not broken(constraints, metrics):
            self.reached = f"{result.sweep}/{result.name}"
            value = metrics[self.target.metric]
            assert value is not None
            self.on_event(TargetReached(self.reached, self.target.metric, value, self.target.value))

    def outcome(self, sweep: str, waiting: Iterable[str], *, interrupted: bool, no_room: str) -> SweepOutcome:
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
            no_room=no_room,
        )


def figures(stages: Sequence[StageRecord]) -> tuple[float | None, float | None]:
    """Perplexity and sparsity after the last stage."""
    if not stages:
        return None, None
    measured, counted = stages[-1].evaluation, stages[-1].sparsity
    return (measured.perplexity if measured else None), (counted.pruned if counted else None)
