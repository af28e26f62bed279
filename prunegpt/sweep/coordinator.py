"""Runs a sweep: expands nothing itself, starts what may start, follows what runs, stores the results.

One process coordinates a root and is the only one that writes its database. It may be killed at any instant: what is
on disk and in the store is complete, and the next run resumes from there.
"""

import errno
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from prunegpt.errors import LaunchError
from prunegpt.launch.base import Exited, Launcher, queues
from prunegpt.records import DISK_FULL, EARLY_STOP
from prunegpt.root import Root
from prunegpt.spec.only import Only, globs, matches, refuse_unmatched
from prunegpt.spec.plan import SweepPlan, TrialPlan
from prunegpt.store import SavedTrial, Store
from prunegpt.sweep.attempt import Attempt
from prunegpt.sweep.changes import reasons
from prunegpt.sweep.control import Action, take
from prunegpt.sweep.dispatch import Dispatcher
from prunegpt.sweep.events import Event, StagePublished, Stopping, SweepOutcome, SweepStarted
from prunegpt.sweep.failures import Ending, judge
from prunegpt.sweep.interrupt import Interrupt
from prunegpt.sweep.keep import Retention
from prunegpt.sweep.lock import coordinating
from prunegpt.sweep.patience import PatientLauncher
from prunegpt.sweep.recovery import recover
from prunegpt.sweep.scheduler import Published, StageScheduler, name_of, select
from prunegpt.sweep.states import SETTLED, TrialStates
from prunegpt.sweep.watchdog import Watchdog

if TYPE_CHECKING:
    from prunegpt.sweep.early_stop import CurveStopper
    from prunegpt.sweep.search.open import Searches

POLL = 0.05  # seconds between questions to the launcher
FOLLOW = 0.5  # seconds between polls of the files of running attempts
_GRACE = 120.0  # seconds that running attempts get for a checkpoint when they are asked to stop


def run_sweep(
    plan: SweepPlan,
    root: Root,
    store: Store,
    launcher: Launcher,
    *,
    only: Only = None,
    on_event: Callable[[Event], None] = lambda _: None,
    interrupt: Interrupt | None = None,
    grace: float = _GRACE,
    suggester: "Searches | None" = None,
    early_stopper: "CurveStopper | None" = None,
    held: bool = False,
) -> SweepOutcome:
    """Runs every trial of a plan that is not finished yet, until one has reached the plan's target.

    SIGINT, SIGTERM or SIGHUP: nothing more is started, and running attempts are asked to write a checkpoint and end; a
    second Ctrl-C kills them, see `Interrupt`. Either way the next run resumes. The launcher is closed at the end.

    What the launcher refuses is tried again or fails the trial that it was asked for; the others live.

    Args:
        only: globs; trials whose name one matches, and those that their teachers need.
        on_event: called with every event, from this thread.
        interrupt: asks to stop from elsewhere, beside the signals and `sweep.control`.
        grace: seconds for a checkpoint before attempts that were asked to stop are killed; one whose steps take long
            gets more, see `Attempt.patience`.
        suggester: adds trials while there are slots for them, unless `only` names none of the plan's searches.
        early_stopper: sees the points of what runs, and gives trials up.
        held: this process coordinates the root already, see `queue.turn`.

    Raises:
        LaunchError: another coordinator has this root or database, or the disk is full.
        SpecError: a glob of `only` matches nothing.
    """
    matched = matching(plan, only)
    stop = interrupt or Interrupt()
    searches = suggester if _searches(plan, only) else None
    patient = PatientLauncher(launcher, on_event)
    mine = nullcontext() if held else coordinating(root, plan.name)
    with mine, store.sole_writer() as sole, stop.on_signals():
        if not sole:
            raise LaunchError(
                "a database takes one coordinator at a time; this one has another already. Wait for it, stop it with "
                "Ctrl-C, or give each root a database of its own."
            )
        try:
            lost = recover(root, store)
            take(root)  # requests that an earlier coordinator did not live to handle
            outdated, replaced = store.outdated(plan), store.replaced(plan)
            planned = {trial.name: trial for trial in plan.trials if trial.sweep == plan.name}
            because = reasons(store, plan.name, outdated, planned)
            again = tuple(name for name, computed in outdated.items() if computed)
            measured = tuple(name for name, computed in outdated.items() if not computed)
            saved = store.save_sweep(plan)
            wanted = [trial for trial, match in zip(saved, matched, strict=True) if match]
            if searches is not None:
                searches.begin()  # before its earlier suggestions are asked for: it puts some aside
                earlier = store.suggested(plan)
                saved, wanted = [*saved, *earlier], [*wanted, *earlier]
            _want_teachers(root, plan, wanted, searching=searches is not None)
            constraints = tuple(dict.fromkeys(text for search in plan.searches for text in search.spec.constraints))
            states = TrialStates(
                root, store, saved, wanted, on_event, searches, early_stopper, plan.target, constraints
            )
            run = _Run(plan, root, store, patient, queues(launcher), states, saved, wanted, stop, grace)
            if searches is not None:
                run.needed.update(need for search in plan.searches for need in search.needs)
            changed = (again, measured, because, str(replaced or ""))
            return run.run(SweepStarted(plan.name, 0, 0, tuple(lost), *changed))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise LaunchError(
                f"running a sweep needs room on the disk of {root.path}; there is none left. Free some space and run "
                "the sweep again to resume."
            ) from error
        finally:
            patient.close()


def matching(plan: SweepPlan, only: Only) -> list[bool]:
    """Which trials of a plan globs mean: those of such a name, and those that teach a search of such a name.

    Raises:
        SpecError: a glob matches neither a trial nor a search.
    """
    if not globs(only):
        return [True] * len(plan.trials)
    own = [trial.name for trial in plan.trials if trial.sweep == plan.name]
    refuse_unmatched(only, [*own, *(search.name for search in plan.searches)])
    taught = {need for search in plan.searches if matches(search.name, only) for need in search.needs}
    return [trial.sweep == plan.name and (matches(trial.name, only) or trial.key in taught) for trial in plan.trials]


def _searches(plan: SweepPlan, only: Only) -> bool:
    """Whether suggestions are asked for."""
    return not globs(only) or any(matches(search.name, only) for search in plan.searches)


def _want_teachers(root: Root, plan: SweepPlan, wanted: Sequence[SavedTrial], *, searching: bool) -> None:
    """Teachers whose models were removed, and that are still to teach, are computed again."""
    open_ = [trial.plan for trial in wanted if trial.state not in SETTLED]
    taught = [trial for trial in open_ if not all(root.is_published(stage.key) for stage in trial.stages)]
    needs = {need for trial in taught for need in trial.needs}
    for need in needs | {need for search in plan.searches if searching for need in search.needs}:
        root.want_model(need)


class _Run:
    """One run of a sweep, from the first trial that starts to the last one that ends."""

    def __init__(
        self,
        plan: SweepPlan,
        root: Root,
        store: Store,
        launcher: PatientLauncher,
        queues: bool,
        states: TrialStates,
        saved: Sequence[SavedTrial],
        wanted: Sequence[SavedTrial],
        interrupt: Interrupt,
        grace: float,
    ) -> None:
        self.sweep, self.policy = plan.name, plan.failures
        self.root, self.store, self.launcher, self.states = root, store, launcher, states
        self.interrupt, self.grace = interrupt, grace
        published = Published(root)
        plans = sorted((trial.plan for trial in saved), key=lambda plan: (plan.sweep != self.sweep, plan.order))
        trials = select(
            plans,
            [trial.plan for trial in wanted if trial.state not in SETTLED],
            published,
            barred=[name for name, state in states.states.items() if state == "diverged"],
        )
        states.order = [name_of(trial) for trial in trials]
        names = set(states.order)
        self.scheduler = StageScheduler(trials, published, [trial for trial in plans if name_of(trial) not in names])
        self.dispatch = Dispatcher(root, store, launcher, self.scheduler, published, states, self._halted)
        self.attempts = self.dispatch.attempts
        self.keeper = Retention(root, store, plan.name, plan.keep)
        self.needed: set[str] = set()  # stage keys that suggestions to come may need
        self.watchdog = Watchdog(plan.failures, queues=queues)
        self.stopping = 0  # how much of the interrupt was passed on
        self.deadline = math.inf

    def run(self, begun: SweepStarted) -> SweepOutcome:
        order, unchanged = len(self.states.order), len(self.states.unchanged)
        self.states.on_event(replace(begun, trials=order, finished=unchanged))
        self.states.look_for_target(self.sweep)
        self.dispatch.fill()
        looked = time.monotonic()
        while self.attempts:
            self._pass_on_interrupt()
            changed = [self._end(attempt, exited) for attempt, exited in self._exited()]
            if changed or time.monotonic() - looked >= FOLLOW:
                changed += [self._follow(attempt) for attempt in self.attempts.values()]
                changed += [self._do(action) for action in take(self.root)]
                self._watch()
                looked = time.monotonic()
            if any(changed):
                self.keeper.look(self._needed())
                self.dispatch.fill()
            elif self.attempts:
                time.sleep(POLL)
        self.keeper.look((), now=True)
        return self.states.outcome(
            self.sweep, self.scheduler.waiting, interrupted=self.interrupt.count > 0, no_room=self.dispatch.no_room
        )

    def _needed(self) -> set[str]:
        """Stage keys that trials may need which a search suggests later: its teachers, and stages that trials share."""
        if not self.needed:
            return self.needed
        return self.needed | {stage.key for trial in self.states.plans.values() for stage in trial.stages[:-1]}

    def _halted(self) -> bool:
        """Whether nothing more is to be started."""
        return self.interrupt.count > 0 or bool(self.states.reached or self.dispatch.no_room)

    # -- what runs ---------------------------------------------------------------------------------------------

    def _follow(self, attempt: Attempt) -> bool:
        """Stores new points and reports what was published; returns whether anything was."""
        points = attempt.store_points(self.store)
        if points:
            progress = attempt.progress(points)
            if progress is not None:
                self.states.on_event(progress)
            stopper = self.states.early_stopper
            why = stopper.observe(attempt.trial, points) if stopper else None
            if why is not None:
                self._ask(attempt, Ending(EARLY_STOP, why, "stopped"))
        return self._note_published(attempt)

    def _note_published(self, attempt: Attempt) -> bool:
        name = name_of(attempt.trial)
        before = self.scheduler.current(name)
        after = self.scheduler.current(name, look=True)
        if before is None or before == after:
            return False
        keys = [stage.key for stage in attempt.trial.stages]
        last = keys.index(after.stage) if after is not None else len(keys) - 1
        for index in range(keys.index(before.stage), last + 1):
            record = self.dispatch.record_stage(attempt, index)
            if record is not None and (index > keys.index(before.stage) or before.evaluation is None):
                self.states.on_event(StagePublished(name, index, record.kind, record.key, record.seconds))
        return True

    def _exited(self) -> list[tuple[Attempt, Exited]]:
        polled = [(attempt, self.launcher.poll(attempt)) for attempt in self.attempts.values()]
        return [(attempt, exited) for attempt, exited in polled if exited is not None]

    def _end(self, attempt: Attempt, exited: Exited) -> bool:
        trial: TrialPlan = attempt.trial
        self._follow(attempt)
        verdict = judge(
            attempt.record(exited),
            trial,
            asked=attempt.ending,
            draining=self.interrupt.count > 0,
            policy=self.policy,
            endings=self.states.endings(trial),
        )
        del self.attempts[name_of(trial)]
        if verdict.state == "waiting":
            self.scheduler.requeue(trial)
        else:
            self.scheduler.end(trial, diverged=verdict.state == "diverged")
        if verdict.record.reason == DISK_FULL and verdict.state != "waiting":  # the others would fail of it in turn
            self.dispatch.no_room = f"the disk of {self.root.path} is full"
        self.states.settle(attempt, verdict)
        return True

    # -- stopping ----------------------------------------------------------------------------------------------

    def _ask(self, attempt: Attempt, ending: Ending, *, kill: bool = False) -> None:
        """Asks an attempt to end; the first reason counts."""
        if attempt.ending is None:
            attempt.ending = ending
            attempt.deadline = time.monotonic() + attempt.patience(self.grace)
            self.launcher.cancel(attempt, kill=kill)

    def _watch(self) -> None:
        """Ends what is silent or takes too long, and kills what does not heed."""
        by_folder = {attempt.folder: attempt for attempt in self.attempts.values() if attempt.handle}
        for folder, ending in self.watchdog.look(list(by_folder)).items():
            self._ask(by_folder[folder], ending, kill=ending.reason == "lost")
        for attempt in by_folder.values():
            if time.monotonic() > attempt.deadline:
                attempt.deadline = math.inf
                self.launcher.cancel(attempt, kill=True)

    def _pass_on_interrupt(self) -> None:
        if self.stopping == 0 and self.interrupt.count >= 1:
            patience = max(attempt.patience(self.grace) for attempt in self.attempts.values())
            self.deadline = time.monotonic() + patience
            self._cancel(1, kill=False)
        if self.stopping == 1 and (self.interrupt.count >= 2 or time.monotonic() > self.deadline):
            self._cancel(2, kill=True)

    def _cancel(self, level: int, *, kill: bool) -> None:
        self.stopping = level
        for attempt in self.attempts.values():
            self.launcher.cancel(attempt, kill=kill)
        self.states.on_event(Stopping(tuple(self.attempts), kill))

    # -- requests of other processes ---------------------------------------------------------------------------------

    def _do(self, action: Action) -> bool:
        """Does what another process asked for; whether something may start now."""
        name = f"{action.sweep}/{action.trial}"
        if action.kind == "retry" and action.trial is not None:
            return self._retry(action.sweep, action.trial)
        if action.sweep != self.sweep:
            return False
        if action.kind in ("stop", "kill"):
            while self.interrupt.count < (1 if action.kind == "stop" else 2):
                self.interrupt.request()
        elif name in self.attempts:
            self._ask(self.attempts[name], Ending("stopped", "it was asked to stop.", "stopped"))
        elif name in self.scheduler.waiting:
            self.dispatch.end(self.scheduler.waiting[name], "stopped", "it was asked to stop.", state="stopped")
            return True
        return False

    def _retry(self, sweep: str, trial: str) -> bool:
        if not self.store.retry(sweep, [trial]):
            return False
        plan = self.states.again(f"{sweep}/{trial}")
        if plan is not None:
            self.scheduler.add(plan)
        return plan is not None
