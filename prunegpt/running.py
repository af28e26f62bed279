"""A run of a sweep: waits for its root, opens all that it needs, and closes it again."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from prunegpt.errors import LaunchError
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.events import Event, SweepOutcome

if TYPE_CHECKING:
    from prunegpt.planning.resolve import Planner


def start(
    planner: "Planner",
    root: Root,
    *,
    slots: int | None,
    launcher: str | None,
    only: str | None,
    priority: int = 0,
    wait: bool = True,
    on_event: Callable[[Event], None],
) -> SweepOutcome:
    """Waits for the root, opens all that a run of a sweep needs, runs it, and closes it again.

    Args:
        slots, launcher: the number of concurrent trials and the kind of launcher, in place of the spec's.
        only: a glob of the trials that are wanted.
        priority, wait: see `queue.turn`.

    Raises:
        LaunchError: another coordinator has the root and `wait` is off, or nothing can be started.
    """
    from prunegpt.launch.choose import open_launcher
    from prunegpt.planning.precision import resolved
    from prunegpt.sweep.coordinator import run_sweep
    from prunegpt.sweep.early_stop import open_early_stop
    from prunegpt.sweep.interrupt import Interrupt
    from prunegpt.sweep.queue import turn
    from prunegpt.sweep.search.open import open_search

    plan = planner.plan
    where = plan.launcher.of(launcher) if launcher else plan.launcher
    for trial in plan.trials if launcher else ():  # without, what was planned for is where it runs
        there = resolved(str(trial.config.get("precision", "auto")), trial.device, where)
        if there != trial.precision:
            raise LaunchError(
                f"precision auto is decided when a trial is planned, and {trial.name} was planned in {trial.precision} "
                f"for launcher {plan.launcher.kind}, but {where.kind} would compute it in {there}. "
                f"Say in the spec which of the two is meant, or name the launcher there."
            )
    stop = Interrupt()
    with ExitStack() as stack:
        if not stack.enter_context(turn(root, plan.name, priority, wait=wait, interrupt=stop, on_wait=on_event)):
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
            open_launcher(where, root, slots=slots),  # last: run_sweep closes it
            only=only,
            on_event=on_event,
            interrupt=stop,
            suggester=suggester,
            early_stopper=early_stopper,
            held=True,
        )
