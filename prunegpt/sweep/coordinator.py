"""Runs a sweep: expands nothing itself, starts what may start, follows what runs, stores what comes of it.

One process coordinates a root and is the only one that writes its database. It may be killed at any instant: what is
on disk and in the store says all, and the next run goes on from there.
"""

import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from prunegpt.errors import LaunchError, Problem, SpecError, nearest
from prunegpt.launch.base import Exited, Launcher
from prunegpt.records import AttemptRecord, StageRecord, TrialState
from prunegpt.root import Root, write_text
from prunegpt.spec.plan import SweepPlan, TrialPlan
from prunegpt.store import SavedTrial, Store
from prunegpt.sweep.adaptive import EarlyStopper, NoEarlyStopper, NoSuggester, NoTracker, Suggester, Tracker
from prunegpt.sweep.attempt import Attempt, published_record, readable
from prunegpt.sweep.board import Blocked, Board, Published, Unit, name_of, select
from prunegpt.sweep.events import (
    CacheHit,
    Event,
    StagePublished,
    Stopping,
    SweepOutcome,
    SweepStarted,
    TrialFailed,
    TrialFinished,
    TrialStarted,
)
from prunegpt.sweep.interrupt import Interrupt
from prunegpt.sweep.lock import coordinating
from prunegpt.sweep.recovery import recover

RETRIED = ("lost", "signal", "stopped")  # reasons of an end that says nothing about the trial itself
RETRIES = 1  # times that a trial is tried again for one of them, in one run of the sweep
_SETTLED = ("finished", "diverged", "stopped")  # states of a trial that another run does not change
_POLL = 0.05  # seconds between questions to the launcher
_FOLLOW = 0.5  # seconds between looks at the files of running attempts
_GRACE = 120.0  # seconds that running attempts get for a checkpoint when they are asked to stop


def run_sweep(
    plan: SweepPlan,
    root: Root,
    store: Store,
    launcher: Launcher,
    *,
    only: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    interrupt: Interrupt | None = None,
    grace: float = _GRACE,
    suggester: Suggester | None = None,
    early_stopper: EarlyStopper | None = None,
    tracker: Tracker | None = None,
) -> SweepOutcome:
    """Runs every trial of a plan that is not finished yet.

    SIGINT or SIGTERM once: nothing more is started, and running attempts are asked to write a checkpoint and end;
    twice: they are killed. Either way the next run goes on. The launcher is closed at the end.

    Args:
        only: a glob; trials whose name matches, and those that their teachers need.
        on_event: is told what happens, from this thread.
        interrupt: asks to stop from elsewhere, beside the signals.
        grace: seconds for a checkpoint before attempts that were asked to stop are killed.
        suggester: adds trials while there are slots for them, unless `only` names none of the plan's searches.
        early_stopper: sees the points of what runs, and gives trials up.
        tracker: is told the same as `on_event`, and all points.

    Raises:
        LaunchError: another coordinator has this root or database, or no worker can be started.
        SpecError: `only` matches no trial.
    """
    matched = _matching(plan, only)
    stop = interrupt or Interrupt()
    with coordinating(root), store.sole_writer() as sole, stop.on_signals():
        if not sole:
            raise LaunchError(
                "a database takes one coordinator at a time, but this one has another already. "
                "Wait for it, stop it with Ctrl-C, or give each root a database of its own."
            )
        lost = recover(root, store)
        saved = store.save_sweep(plan)
        wanted = [trial for trial, match in zip(saved, matched, strict=True) if match]
        if suggester and _searches(plan, only):
            earlier = store.suggested(plan)
            saved, wanted = [*saved, *earlier], [*wanted, *earlier]
        try:
            adaptive = (
                suggester if suggester and _searches(plan, only) else NoSuggester(),
                early_stopper or NoEarlyStopper(),
                tracker or NoTracker(),
            )
            return _Run(plan.name, root, store, launcher, saved, wanted, on_event, stop, grace, *adaptive).run(lost)
        finally:
            launcher.close()


def _matching(plan: SweepPlan, only: str | None) -> list[bool]:
    if only is None:
        return [True] * len(plan.trials)
    found = [trial.sweep == plan.name and fnmatchcase(trial.name, only) for trial in plan.trials]
    if not any(found) and not _searches(plan, only):
        close = ", ".join(nearest(only, [trial.name for trial in plan.trials if trial.sweep == plan.name])[:8])
        raise SpecError([Problem("", f"--only must match a trial, but {only!r} matches none. Trials: {close}.")])
    return found


def _searches(plan: SweepPlan, only: str | None) -> bool:
    """Whether suggestions are asked for."""
    return only is None or any(fnmatchcase(search.name, only) for search in plan.searches)


class _Run:
    """One run of a sweep, from the first trial that starts to the last one that ends."""

    def __init__(
        self,
        sweep: str,
        root: Root,
        store: Store,
        launcher: Launcher,
        saved: Sequence[SavedTrial],
        wanted: Sequence[SavedTrial],
        on_event: Callable[[Event], None],
        interrupt: Interrupt,
        grace: float,
        suggester: Suggester,
        early_stopper: EarlyStopper,
        tracker: Tracker,
    ) -> None:
        self.sweep = sweep
        self.root = root
        self.store = store
        self.launcher = launcher
        self.on_event = on_event
        self.suggester = suggester
        self.early_stopper = early_stopper
        self.tracker = tracker
        self.interrupt = interrupt
        self.grace = grace
        self.ids = {name_of(trial.plan): trial.id for trial in saved}
        self.states: dict[str, TrialState] = {name_of(trial.plan): trial.state for trial in saved}
        self.why: dict[str, str] = {}  # trial -> what it failed with
        self.unchanged = tuple(name_of(trial.plan) for trial in wanted if trial.state in _SETTLED)
        self.published = Published(root)
        plans = sorted((trial.plan for trial in saved), key=lambda plan: (plan.sweep != sweep, plan.order))
        trials = select(
            plans,
            [trial.plan for trial in wanted if trial.state not in _SETTLED],
            self.published,
            barred=[name for name, state in self.states.items() if state == "diverged"],
        )
        names = {name_of(trial) for trial in trials}
        self.order = [name_of(trial) for trial in trials]
        self.board = Board(trials, self.published, [trial for trial in plans if name_of(trial) not in names])
        self.attempts: dict[str, Attempt] = {}
        self.retries: dict[str, int] = {}
        self.finished: set[str] = set()
        self.cached: set[str] = set()
        self.failed: set[str] = set()
        self.stopping = 0  # how much of the interrupt was passed on
        self.deadline = 0.0

    def run(self, lost: Sequence[str]) -> SweepOutcome:
        self.tell(SweepStarted(self.sweep, len(self.order), len(self.unchanged), tuple(lost)))
        self._dispatch()
        followed = time.monotonic()
        while self.attempts:
            self._pass_on_interrupt()
            changed = [self._end(attempt, exited) for attempt, exited in self._exited()]
            if changed or time.monotonic() - followed >= _FOLLOW:
                changed += [self._follow(attempt) for attempt in self.attempts.values()]
                followed = time.monotonic()
            if any(changed):
                self._dispatch()
            elif self.attempts:
                time.sleep(_POLL)
        return SweepOutcome(
            sweep=self.sweep,
            finished=self._ordered(self.finished),
            cached=self._ordered(self.cached),
            unchanged=self.unchanged,
            failed=self._ordered(self.failed),
            waiting=tuple(self.board.waiting),
            interrupted=self.interrupt.count > 0,
        )

    def tell(self, event: Event) -> None:
        self.on_event(event)
        self.tracker.event(event)

    def _tell_result(self, trial: TrialPlan, state: TrialState) -> None:
        """A trial has ended, for now or for good."""
        self.early_stopper.end(trial, state)
        if not isinstance(self.suggester, NoSuggester):
            self.suggester.tell(self.store.result(self.ids[name_of(trial)]))

    def _ordered(self, names: set[str]) -> tuple[str, ...]:
        return tuple(name for name in self.order if name in names)

    # -- starting ----------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Ends what needs no worker, and starts what may start while there are slots."""
        while not self.interrupt.count:
            for complete in self.board.complete():
                self._finish_from_cache(complete)
            if self._settle_hopeless():
                continue  # what they would have published may be what others wait for
            free = len(self.attempts) < self.launcher.slots
            trial = self.board.next() if free else None
            if trial is not None:
                self._start(trial)
            elif not (free and self._suggest()) and (self.attempts or not self.board.waiting or not self._unstick()):
                return

    def _suggest(self) -> bool:
        """Adds a trial that was not planned; whether there is one."""
        suggested = self.suggester.suggest()
        if suggested is None:
            return False
        name = name_of(suggested)
        if name in self.board.waiting or name in self.attempts:
            return False
        saved = self.store.add_trial(suggested)
        self.ids[name], self.states[name] = saved.id, saved.state
        if saved.state in _SETTLED:
            self._tell_result(suggested, saved.state)
            return True
        self.order.append(name)
        self.board.add(suggested)
        return True

    def _unstick(self) -> bool:
        """Nothing runs and nothing may start: others have published, or the teachers that are left form a circle."""
        self.board.look()
        if self.board.complete() or self.board.next():
            return True
        message = (
            "it needs a teacher that only trials which wait for it in turn could still publish. "
            "Mend the trials that failed, or distil one of them from something else."
        )
        for trial in list(self.board.waiting.values()):
            self._fail(trial, "dependency", message)
        return False

    def _start(self, trial: TrialPlan) -> None:
        name = name_of(trial)
        home = self.root.trial(trial.sweep, trial.name)
        started = self.store.start_attempt(self.ids[name], at_least=_last_number(home) + 1)
        folder = self.root.path / started.folder
        attempt = Attempt(started.id, started.number, trial, folder)
        write_text(folder / "trial.json", trial.model_dump_json(indent=2) + "\n")
        try:
            attempt.handle = self.launcher.submit(folder)
        except LaunchError as error:
            record = attempt.record(None).model_copy(update={"reason": "launch", "error": str(error)})
            self.store.finish_attempt(record, state="waiting")
            raise
        self.board.start(trial)
        self.attempts[name] = attempt
        attempt.cached = sum(1 for stage in trial.stages if self.published.look(Unit(stage.key)))
        for index in range(attempt.cached):
            self._record_stage(attempt, index)
        self.tell(TrialStarted(name, started.number, started.folder, len(trial.stages), attempt.cached))

    def _finish_from_cache(self, trial: TrialPlan) -> None:
        name = name_of(trial)
        try:
            stages = [published_record(self.root, trial, index, cached=True) for index in range(len(trial.stages))]
        except (OSError, ValueError) as error:
            self._fail(
                trial,
                "cache",
                f"a published stage must have a stage.json and evaluation.json that can be read, but of "
                f"{', '.join(stage.key for stage in trial.stages)} one has not: {readable(error)}. "
                f"Delete its folder under {self.root.stages}, and it is computed again.",
            )
            return
        self.store.conclude(self.ids[name], "finished", reason="cache", stages=stages)
        self.board.end(trial)
        self.states[name] = "finished"
        self.cached.add(name)
        self.tell(CacheHit(name, len(stages), *_figures(stages)))
        self._tell_result(trial, "finished")

    # -- what runs ---------------------------------------------------------------------------------------------

    def _follow(self, attempt: Attempt) -> bool:
        """Stores new points and tells what was published; whether anything was."""
        points = attempt.store_points(self.store)
        if points:
            self.tracker.points(attempt.trial, points)
            progress = attempt.progress(points)
            if progress is not None:
                self.tell(progress)
            self._give_up(attempt, self.early_stopper.observe(attempt.trial, points))
        return self._note_published(attempt)

    def _give_up(self, attempt: Attempt, reason: str | None) -> None:
        if reason is None or attempt.given_up:
            return
        attempt.given_up = reason
        self.launcher.cancel(attempt.handle)

    def _note_published(self, attempt: Attempt) -> bool:
        name = name_of(attempt.trial)
        before = self.board.current(name)
        after = self.board.current(name, look=True)
        if before is None or before == after:
            return False
        keys = [stage.key for stage in attempt.trial.stages]
        last = keys.index(after.stage) if after is not None else len(keys) - 1
        for index in range(keys.index(before.stage), last + 1):
            record = self._record_stage(attempt, index)
            if record is not None and (index > keys.index(before.stage) or before.evaluation is None):
                self.tell(StagePublished(name, index, record.kind, record.key, record.seconds))
        return True

    def _record_stage(self, attempt: Attempt, index: int) -> StageRecord | None:
        try:
            record = published_record(self.root, attempt.trial, index, cached=index < attempt.cached)
        except (OSError, ValueError):
            return None  # not there yet, or not as it should be: the attempt's own record will tell
        self.store.record_stage(record, attempt.id)
        return record

    def _exited(self) -> list[tuple[Attempt, Exited]]:
        polled = [(attempt, self.launcher.poll(attempt.handle)) for attempt in self.attempts.values()]
        return [(attempt, exited) for attempt, exited in polled if exited is not None]

    def _end(self, attempt: Attempt, exited: Exited) -> bool:
        name = name_of(attempt.trial)
        self._follow(attempt)
        record = attempt.record(exited)
        del self.attempts[name]
        if record.state == "finished":
            self.store.finish_attempt(record)
            self.board.end(attempt.trial)
            self.states[name] = "finished"
            self.finished.add(name)
            seconds = record.ended - record.started
            self.tell(TrialFinished(name, attempt.number, seconds, *_figures(record.stages)))
            self._tell_result(attempt.trial, "finished")
            return True
        if attempt.given_up and record.state != "diverged":
            update = {"state": "stopped", "reason": "early-stop", "error": attempt.given_up}
            record = record.model_copy(update=update)
        if self.interrupt.count and record.reason in RETRIED:
            self._wait_again(attempt, record, retried=False)
        elif record.reason in RETRIED and self.retries.get(name, 0) < RETRIES:
            self.retries[name] = self.retries.get(name, 0) + 1
            self._wait_again(attempt, record, retried=True)
        else:
            state: TrialState = "failed" if record.reason in RETRIED else record.state
            self.store.finish_attempt(record, state=state)
            self.board.end(attempt.trial, diverged=state == "diverged")
            self.states[name], self.why[name] = state, record.error
            self.failed.add(name)
            self.tell(self._failure(attempt, record, state, retried=False))
            self._tell_result(attempt.trial, state)
        return True

    def _wait_again(self, attempt: Attempt, record: AttemptRecord, *, retried: bool) -> None:
        self.store.finish_attempt(record, state="waiting")
        self.board.requeue(attempt.trial)
        self.tell(self._failure(attempt, record, "waiting", retried=retried))

    def _failure(self, attempt: Attempt, record: AttemptRecord, state: TrialState, *, retried: bool) -> TrialFailed:
        log = str((attempt.folder / "log.txt").relative_to(self.root.path))
        return TrialFailed(
            name_of(attempt.trial), attempt.number, state, record.reason, record.error, log, retried=retried
        )

    # -- what can never run ------------------------------------------------------------------------------------

    def _settle_hopeless(self) -> bool:
        """Fails trials that can never start, or would fail as others have; whether there were any."""
        blocked, doomed = self.board.blocked(), self.board.doomed()
        for one in blocked:
            self._block(one)
        for trial, first in doomed:
            if name_of(trial) in self.board.waiting:
                self._doom(trial, first)
        return bool(blocked or doomed)

    def _block(self, blocked: Blocked) -> None:
        if blocked.culprit is None:
            message = (
                f"it needs the stage {blocked.need} as its teacher, but that is not published, and no trial of this "
                f"sweep computes it. Run the sweep it belongs to first."
            )
        else:
            name = name_of(blocked.culprit)
            why = f": {self.why[name]}" if self.why.get(name) else ""
            message = (
                f"it needs the model of {name} as its teacher, but that trial is {self.states[name]}{why} "
                f"Mend that one and run the sweep again."
            )
        self._fail(blocked.trial, "dependency", message)

    def _doom(self, trial: TrialPlan, first: TrialPlan) -> None:
        message = f"its next stage is the one that diverged in {name_of(first)}, and would diverge again."
        self._fail(trial, "diverged", message, state="diverged")

    def _fail(self, trial: TrialPlan, reason: str, message: str, *, state: TrialState = "failed") -> None:
        name = name_of(trial)
        self.store.conclude(self.ids[name], state, reason=reason, error=message)
        self.board.end(trial, diverged=state == "diverged")
        self.states[name] = state
        self.why[name] = message
        self.failed.add(name)
        self.tell(TrialFailed(name, 0, state, reason, message, "", retried=False))
        self._tell_result(trial, state)

    # -- stopping ----------------------------------------------------------------------------------------------

    def _pass_on_interrupt(self) -> None:
        if self.stopping == 0 and self.interrupt.count >= 1:
            self.deadline = time.monotonic() + self.grace
            self._cancel(1, kill=False)
        if self.stopping == 1 and (self.interrupt.count >= 2 or time.monotonic() > self.deadline):
            self._cancel(2, kill=True)

    def _cancel(self, level: int, *, kill: bool) -> None:
        self.stopping = level
        for attempt in self.attempts.values():
            self.launcher.cancel(attempt.handle, kill=kill)
        self.tell(Stopping(tuple(self.attempts), kill))


def _last_number(home: Path) -> int:
    """The highest number of the attempt folders of a trial; a database that was lost does not know them."""
    numbers = [path.name.removeprefix("attempt-") for path in home.glob("attempt-*")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _figures(stages: Sequence[StageRecord]) -> tuple[float | None, float | None]:
    """Perplexity and sparsity after the last stage."""
    if not stages:
        return None, None
    measured, counted = stages[-1].evaluation, stages[-1].sparsity
    return (measured.perplexity if measured else None), (counted.pruned if counted else None)
