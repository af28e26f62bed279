"""Gives up trials that do badly, by Optuna's rules, on equal tokens.

The curve of one metric is cut into buckets by the tokens that the trial was trained on over its whole chain. A
bucket's value is the latest of the curve at or before the bucket's end, and its number is the step at which the rule
compares trials. The comparison has a study of its own with one objective, so that it works for listed trials, for
grids, and for searches with several objectives, where Optuna's own refuses. Trials whose metric is measured in
different ways are not compared.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prunegpt.planning.budget import train_tokens
from prunegpt.planning.samplers import early_stop_of, quiet
from prunegpt.points import Point
from prunegpt.records import EARLY_STOP, TOTAL_STEPS, TrialResult
from prunegpt.spec.metrics import evaluation_of
from prunegpt.spec.plan import SweepPlan, TrialPlan
from prunegpt.spec.search import EarlyStopSpec
from prunegpt.store import Store
from prunegpt.sweep.scheduler import name_of
from prunegpt.sweep.tokens import TokenClock

if TYPE_CHECKING:
    from optuna import Study, Trial

_PARTS = 20  # of a trial's training, by default, trials are compared that often
_ENDS = "sparsity"  # every stage ends with a point of this curve


@dataclass
class _Curve:
    """One trial's curve, cut into buckets."""

    trial: "Trial"
    clock: TokenClock
    closed: int = 0  # buckets that have a value, or never will
    latest: float | None = None  # of the metric
    seen: set[int] = field(default_factory=set)  # stages that points were seen of
    stopped: bool = False
    early: list[Point] = field(default_factory=list)  # points that came before the width of a bucket was known
    steps: dict[int, int] = field(default_factory=dict)  # stage -> optimizer steps it will have


class CurveStopper:
    """Compares curves at equal tokens.

    Args:
        spec: the rule.
        needed: stage keys that other trials wait for; a trial is not stopped early before it has published those.
        sweep: trials of other sweeps, and teachers that the spec does not list, are not stopped early.
        store: knows the points of stages that a trial finds published.
        history: gives the trials of earlier runs; asked at the first point or end, when the coordinator has put in
            order what it found.
    """

    def __init__(
        self,
        spec: EarlyStopSpec,
        sweep: str,
        needed: Iterable[str],
        store: Store | None = None,
        history: Callable[[], Sequence[TrialResult]] | None = None,
    ) -> None:
        early_stop_of(spec)  # a wrong rule is an error now
        self.spec = spec
        self.every = spec.every
        self._sweep = sweep
        self._needed = frozenset(needed)
        self._store = store
        self._history = history
        self._curves: dict[str, _Curve] = {}
        self._studies: dict[tuple[str, ...], Study] = {}  # of trials whose curves can be compared

    def observe(self, trial: TrialPlan, points: Sequence[Point]) -> str | None:
        """Takes new points of a running trial, in order; why it should be stopped early now, or None."""
        if not points:
            return None
        self._begin(trial, points[0].time)
        curve = self._curve(trial)
        for point in points:
            if not 0 <= point.stage < len(trial.stages):
                continue
            if point.stage not in curve.seen:
                curve.seen.add(point.stage)
                self._recall(curve, trial, point)
            reason = self._take(curve, trial, point)
            if reason and self._may_stop(trial, point.stage):
                curve.stopped = True
                return reason
        return None

    def end(self, trial: TrialPlan, state: str) -> None:
        """A trial has ended in this state; one that is requeued resumes later."""
        from optuna.trial import TrialState

        if state in ("waiting", "running"):
            return
        self._begin(trial, -math.inf)
        known = name_of(trial) in self._curves
        curve = self._curve(trial)
        if not known:
            self._recall(curve, trial, None)
        del self._curves[name_of(trial)]
        told = TrialState.COMPLETE if state == "finished" else TrialState.PRUNED if curve.stopped else TrialState.FAIL
        value = curve.latest
        if told is TrialState.COMPLETE and (value is None or math.isnan(value)):
            told = TrialState.FAIL
        with quiet():
            self._study(trial).tell(curve.trial, value if told is TrialState.COMPLETE else None, state=told)

    def _begin(self, now: TrialPlan, until: float) -> None:
        """Takes the history of trials, in the order in which it happened; once.

        Args:
            now: the trial that is spoken of at this moment; its results from `until` on come from elsewhere.
            until: seconds since the epoch.
        """
        if self._history is None:
            return
        history, self._history = self._history, None
        events: list[tuple[float, int, TrialPlan, Point | str]] = []
        for order, result in enumerate(history()):
            trial = result.plan
            is_now = name_of(trial) == name_of(now)
            points = [point for point in self._stored(trial) if not is_now or point.time < until]
            events += [(point.time, order, trial, point) for point in points]
            if result.state in ("finished", "failed", "diverged", "stopped") and not is_now:
                last = max((point.time for point in points), default=0.0)
                end = EARLY_STOP if result.reason == EARLY_STOP else result.state
                events.append((max(result.ended or 0.0, last), order, trial, end))
        for _, _, trial, event in sorted(events, key=lambda one: one[:2]):
            curve = self._curve(trial)
            if isinstance(event, Point):
                curve.seen.add(event.stage)
                self._take(curve, trial, event)
            else:
                curve.stopped = event == EARLY_STOP
                self.end(trial, "stopped" if event == EARLY_STOP else event)

    # -- one trial ---------------------------------------------------------------------------------------------

    def _curve(self, trial: TrialPlan) -> _Curve:
        name = name_of(trial)
        if name not in self._curves:
            with quiet():
                self._curves[name] = _Curve(self._study(trial).ask(), TokenClock(trial))
        return self._curves[name]

    def _study(self, trial: TrialPlan) -> "Study":
        """Where a trial is compared: with those whose metric is measured as its own is."""
        import optuna

        metric = self.spec.metric.removeprefix("eval_")
        evaluated = metric != self.spec.metric or metric.startswith("perplexity")
        key = trial.under(evaluation_of(metric)).comparison_key if evaluated else ()
        if key not in self._studies:
            with quiet():
                sampler = optuna.samplers.RandomSampler(seed=0)
                pruner = early_stop_of(self.spec)
                self._studies[key] = optuna.create_study(study_name=self._sweep, sampler=sampler, pruner=pruner)
        return self._studies[key]

    def _may_stop(self, trial: TrialPlan, stage: int) -> bool:
        awaited = any(one.key in self._needed for one in trial.stages[stage:])
        return trial.sweep == self._sweep and not trial.implicit and not awaited

    def _take(self, curve: _Curve, trial: TrialPlan, point: Point) -> str | None:
        """One point; what the rule says to the buckets that it closes."""
        if self.every is None:
            self.every = _width(curve, trial, point)
            curve.early.append(point)
            if self.every is None:
                return None
            taken, curve.early = curve.early, []
            told = [self._take(curve, trial, one) for one in taken]
            return next(filter(None, told), None)
        if curve.early:
            taken, curve.early = [*curve.early, point], []
            told = [self._take(curve, trial, one) for one in taken]
            return next(filter(None, told), None)
        tokens = curve.clock.at(point)
        ours = point.name == self.spec.metric
        before = -(-tokens // self.every) - 1  # buckets that end before this point
        reason = self._close(curve, before, tokens)
        if ours:
            curve.latest = math.nan if point.value is None else point.value
            reason = reason or self._close(curve, tokens // self.every, tokens)
        return reason

    def _close(self, curve: _Curve, bucket: int, tokens: int) -> str | None:
        """Closes all buckets up to this one; what the rule says, first of all."""
        reason = None
        while curve.closed < bucket:
            curve.closed += 1
            if curve.latest is None:
                continue
            with quiet():
                curve.trial.report(curve.latest, curve.closed)
                bad = curve.trial.should_prune()
            if bad and reason is None:
                reason = (
                    f"stopped early by {self.spec.method}: {self.spec.metric} was {curve.latest:.5g} after "
                    f"{curve.closed * (self.every or 0):,} tokens, worse than the others at the same number of tokens."
                )
        return reason

    def _recall(self, curve: _Curve, trial: TrialPlan, first: Point | None) -> None:
        """Takes what the store has of a stage from before this trial came to it; no decision is made on that."""
        for point in self._stored(trial, None if first is None else first.stage):
            if first is None or point.time < first.time:
                self._take(curve, trial, point)

    def _stored(self, trial: TrialPlan, stage: int | None = None) -> list[Point]:
        """Points from the store that matter here, in time."""
        if self._store is None:
            return []
        names = dict.fromkeys((self.spec.metric, "loss", _ENDS, *(() if self.every else (TOTAL_STEPS,))))
        found = [point for name in names for point in self._store.points(name_of(trial), name, stage=stage)]
        points = [point for point in found if 0 <= point.stage < len(trial.stages)]
        return sorted(points, key=lambda point: (point.stage, point.tokens, point.time))


def _width(curve: _Curve, trial: TrialPlan, point: Point) -> int | None:
    """Tokens of a bucket: a twentieth of this trial's training; None where that is not known yet."""
    if point.name == TOTAL_STEPS and point.value:
        curve.steps[point.stage] = int(point.value)
    planned = [
        train_tokens(stage, stage.declared_blocks) for stage in trial.stages
    ]  # 0 of a source, however it was made
    if planned[point.stage] is None and point.stage in curve.steps and point.step > 0 and point.tokens > 0:
        planned[point.stage] = point.tokens * curve.steps[point.stage] // point.step
        planned = [count or 0 for count in planned]
    if None in planned or not any(planned):
        return None
    return max(1, sum(count or 0 for count in planned) // _PARTS)


def open_early_stop(plan: SweepPlan, store: Store) -> CurveStopper | None:
    """The rule of a plan, with all that is known of the sweep's trials; None where it has none.

    Raises:
        PruneGPTError: the rule cannot be made.
    """
    if plan.early_stop is None:
        return None
    needed = {need for trial in plan.trials for need in trial.needs}
    needed |= {need for search in plan.searches for need in search.needs}

    def history() -> list[TrialResult]:
        """What was tried of the sweep as it is planned now."""
        return [result for result in store.results(plan.name) if result.attempts or result.stages]

    return CurveStopper(plan.early_stop, plan.name, needed, store, history)
