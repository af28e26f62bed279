"""Running a plan from the command line: what `sweep run` and `sweep resume` have in common."""

from typing import TYPE_CHECKING, Annotated

import typer

from prunegpt.cli.options import say

if TYPE_CHECKING:
    from prunegpt.planning.resolve import Planner
    from prunegpt.root import Root
    from prunegpt.spec.plan import SweepPlan
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
    from prunegpt.api import start
    from prunegpt.cli.progress import follow

    with follow(planner.plan) as on_event:
        outcome = start(planner, root, slots=slots, launcher=launcher, only=only, on_event=on_event)
    _conclude(planner.plan, root, outcome)


def _conclude(plan: "SweepPlan", root: "Root", outcome: "SweepOutcome") -> None:
    show_tables(plan.name, root)
    say(f"Results: {root.path} ({root.database.name}; models in stages/, logs in trials/{plan.name}/)")
    say(f"Look again: prunegpt sweep status {plan.name}; prunegpt table {plan.name}; prunegpt trial show {plan.name}/X")
    if outcome.failed:
        say(f"{len(outcome.failed)} trials did not finish: {', '.join(outcome.failed)}. See `sweep status`.")
    if outcome.given_up:
        say(f"{len(outcome.given_up)} trials were given up early: {', '.join(outcome.given_up)}.")
    if outcome.interrupted:
        say(f"interrupted: prunegpt sweep resume {plan.name} goes on.")
    if outcome.reached and outcome.waiting:
        say(f"{len(outcome.waiting)} trials were not started: {outcome.reached} had reached the target.")
    if outcome.failed or outcome.interrupted:
        raise typer.Exit(1)


def show_tables(name: str, root: "Root") -> None:
    """The sweep's declared tables on standard output, as Markdown."""
    from prunegpt.cli.table import stored, tables_of
    from prunegpt.registry import RENDERERS

    tables = tables_of(stored(name, root))
    if tables:
        print(RENDERERS.load("md")(tables))
