"""A run of a sweep: waits for its root, opens all that it needs, and closes it again."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from prunegpt.errors import LaunchError, SpecError
from prunegpt.root import Root
from prunegpt.spec.only import Only, RunOptions, matches
from prunegpt.spec.plan import SweepPlan, TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.events import Event, SweepOutcome

if TYPE_CHECKING:
    from prunegpt.planning.resolve import Planner
    from prunegpt.stages.counting import Wrong


def prepare(planner: "Planner", root: Root, asked: RunOptions) -> None:
    """Finds what would stop a run before it waits for its turn, and before anything is computed.

    To be called while this process has one thread: what has to be counted is counted in a fork of it.

    Raises:
        LaunchError: the launcher cannot run here, or would compute something else than was planned.
        MissingPackageError: the package that the launcher needs is not installed.
        SpecError: `sweep check` refuses it.
    """
    from prunegpt.launch.choose import check_launcher
    from prunegpt.planning.precision import resolved

    plan = planner.plan
    where = plan.launcher.of(asked.launcher) if asked.launcher else plan.launcher
    for trial in plan.trials if asked.launcher else ():  # without, what was planned for is where it runs
        there = resolved(str(trial.config.get("precision", "auto")), trial.device, where)
        if there != trial.precision:
            raise LaunchError(
                f"precision auto is decided when a trial is planned, and {trial.name} was planned in {trial.precision} "
                f"for launcher {plan.launcher.kind}, but {where.kind} would compute it in {there}. "
                f"Say in the spec which of the two is meant, or name the launcher there."
            )
    check_launcher(where, root, slots=asked.slots)
    _refuse(planner, root, asked.only)


def start(planner: "Planner", root: Root, asked: RunOptions, on_event: Callable[[Event], None]) -> SweepOutcome:
    """Waits for the root, opens all that a run of a sweep needs, runs it, and closes it again.

    Raises:
        LaunchError: another coordinator has the root and `wait` is off, or nothing can be started.
    """
    from prunegpt.launch.choose import open_launcher
    from prunegpt.sweep.coordinator import run_sweep
    from prunegpt.sweep.early_stop import open_early_stop
    from prunegpt.sweep.interrupt import Interrupt
    from prunegpt.sweep.queue import turn
    from prunegpt.sweep.search.open import open_search

    plan = planner.plan
    where = plan.launcher.of(asked.launcher) if asked.launcher else plan.launcher
    stop = Interrupt()
    with ExitStack() as stack:
        turn_of = turn(root, plan.name, asked.priority, wait=asked.wait, interrupt=stop, on_wait=on_event)
        if not stack.enter_context(turn_of):
            names = tuple(f"{trial.sweep}/{trial.name}" for trial in plan.trials)
            return SweepOutcome(plan.name, (), (), (), (), (), names, interrupted=True, left_queue=True)
        store = stack.enter_context(Store.open(root))
        suggester = open_search(plan, store, planner) if plan.searches else None
        early_stopper = open_early_stop(plan, store) if plan.early_stop else None
        if plan.tracking.wandb.mode != "off":
            from prunegpt.tracking.tracker import WandbTracker

            stack.callback(WandbTracker(plan, root).close)
        return run_sweep(
            plan,
            root,
            store,
            open_launcher(where, root, slots=asked.slots),  # last: run_sweep closes it
            only=asked.only,
            on_event=on_event,
            interrupt=stop,
            suggester=suggester,
            early_stopper=early_stopper,
            held=True,
        )


def _refuse(planner: "Planner", root: Root, only: Only) -> None:
    """Counts the datasets of what is not computed yet, as `sweep check` does, before anything is.

    Raises:
        SpecError: with all that is wrong, such as pruning that ends after training does.
    """
    trials = [
        trial
        for trial in chosen(planner.plan, only)
        if not root.is_computed(trial.key, (one.key for one in trial.evaluations))
    ]
    tried = list(searched(planner, only).values())
    if not trials and not tried:
        return
    if "torch" in sys.modules:
        wrong = _count(root, trials, tried)
    else:  # it is needed to count, and for nothing else here: in a process that ends before the sweep begins
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(1, get_context("fork")) as pool:
            wrong = pool.submit(_count, root, trials, tried).result()
    if wrong:
        problems = sorted(planner.problems(wrong), key=lambda problem: problem.line or 0)
        raise SpecError(problems, planner.opened.document.source)


def _count(root: Root, trials: list[TrialPlan], tried: list[list[TrialPlan]]) -> "list[Wrong]":
    from prunegpt.stages.counting import Counting

    return Counting(root).wrong(trials, tried)


def searched(planner: "Planner", only: Only) -> dict[str, list[TrialPlan]]:
    """Name of a search that `only` matches -> trials that it may suggest."""
    return {
        search.name: [found.trial for found in planner.searched[search.index]]
        for search in planner.plan.searches
        if matches(search.name, only)
    }


def chosen(plan: SweepPlan, only: Only) -> list[TrialPlan]:
    """The trials that `only` names, and those that teach them."""
    from prunegpt.sweep.coordinator import matching

    by_key = {trial.key: trial for trial in plan.trials}
    open_ = [trial for trial, matched in zip(plan.trials, matching(plan, only), strict=True) if matched]
    keep = {id(trial) for trial in open_}
    while open_:
        for key in open_.pop().needs:
            if id(by_key[key]) not in keep:
                keep.add(id(by_key[key]))
                open_.append(by_key[key])
    return [trial for trial in plan.trials if id(trial) in keep]
