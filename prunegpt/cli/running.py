"""Running a plan from the command line: what `sweep run` and `sweep resume` have in common."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from prunegpt.cli.options import say

if TYPE_CHECKING:
    from prunegpt.planning.suggested import Planner
    from prunegpt.root import Root
    from prunegpt.spec.plan import SweepPlan
    from prunegpt.store import Store
    from prunegpt.sweep.adaptive import Tracker
    from prunegpt.sweep.events import SweepOutcome

OnlyOption = Annotated[str | None, typer.Option("--only", metavar="GLOB", help="Only trials whose name matches.")]
LauncherOption = Annotated[
    str | None,
    typer.Option("--launcher", metavar="KIND", help="Where trials run, over the spec: local, slurm, ray."),
]
SlotsOption = Annotated[
    int | None,
    typer.Option(
        "--slots",
        min=1,
        help="Trials at a time, over the spec; one a GPU, or one on a machine without, where neither says.",
        show_default=False,
    ),
]


def execute(planner: "Planner", root: "Root", *, only: str | None, launcher: str | None, slots: int | None) -> None:
    """Runs what is not finished of a plan, and prints its tables.

    Raises:
        LaunchError: another coordinator has the root, or nothing can be started.
        typer.Exit: with 1, where trials failed or the run was interrupted.
    """
    from prunegpt.cli.progress import follow
    from prunegpt.errors import LaunchError
    from prunegpt.launch.choose import open_launcher
    from prunegpt.store import Store
    from prunegpt.sweep.coordinator import run_sweep
    from prunegpt.sweep.early_stop import open_early_stop
    from prunegpt.sweep.lock import coordinator, refusal
    from prunegpt.sweep.search.open import open_search

    plan = planner.plan
    where = plan.launcher.of(launcher) if launcher else plan.launcher
    if coordinator(root) is not None:  # before a launcher has started anything
        raise LaunchError(refusal(root))
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(root))
        suggester = open_search(plan, store, root, planner) if plan.searches else None
        early_stopper = open_early_stop(plan, store) if plan.early_stop else None
        tracker = _tracker(stack, plan, root, store)
        on_event = stack.enter_context(follow(plan))
        outcome = run_sweep(
            plan,
            root,
            store,
            open_launcher(where, root, slots=slots),  # last: run_sweep closes it
            only=only,
            on_event=on_event,
            suggester=suggester,
            early_stopper=early_stopper,
            tracker=tracker,
        )
    _conclude(plan, root, outcome)


def _tracker(stack: ExitStack, plan: "SweepPlan", root: "Root", store: "Store") -> "Tracker | None":
    """Whoever else is told; it ends with the stack."""
    if plan.tracking.wandb.mode == "off":
        return None
    from prunegpt.tracking import open_trackers

    tracker = open_trackers(plan, root, store)
    stack.callback(tracker.close)
    return tracker


def _conclude(plan: "SweepPlan", root: "Root", outcome: "SweepOutcome") -> None:
    show_tables(plan.name, root)
    say(f"Results: {root.path} ({root.database.name}; models in stages/, logs in trials/{plan.name}/)")
    say(f"Look again: prunegpt sweep status {plan.name}; prunegpt table {plan.name}; prunegpt trial show {plan.name}/X")
    if outcome.failed:
        say(f"{len(outcome.failed)} trials did not finish: {', '.join(outcome.failed)}. See `sweep status`.")
    if outcome.interrupted:
        say(f"interrupted: prunegpt sweep resume {plan.name} goes on.")
    if outcome.failed or outcome.interrupted:
        raise typer.Exit(1)


def show_tables(name: str, root: "Root") -> None:
    """The sweep's declared tables on standard output, as Markdown."""
    from prunegpt.cli.table import stored, tables_of
    from prunegpt.registry import RENDERERS

    tables = tables_of(stored(name, root))
    if tables:
        print(RENDERERS.load("md")(tables))
