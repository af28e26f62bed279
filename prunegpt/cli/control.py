"""prunegpt sweep stop, resume, retry, rm, study; and running a plan from the command line."""

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegpt.cli import complete
from prunegpt.cli.options import ROOT, JsonOption, TrustOption, print_json, say, sweep_app
from prunegpt.errors import counted, in_bytes, listed
from prunegpt.root import Root
from prunegpt.spec.only import RunOptions, globs, matches

if TYPE_CHECKING:
    from prunegpt.planning.resolve import Planner
    from prunegpt.records import TrialResult

OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="GLOB", help="Only trials or searches whose name matches this glob. Repeatable."),
]
LauncherOption = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        metavar="KIND",
        help="Launcher: local, slurm or ray (overrides the spec).",
        autocompletion=complete.launchers,
    ),
]
SlotsOption = Annotated[
    int | None,
    typer.Option(
        "--slots",
        min=1,
        help="Number of concurrent trials (overrides the spec; default: one per GPU, else 1).",
        show_default=False,
    ),
]
PriorityOption = Annotated[
    int, typer.Option("--priority", metavar="N", help="Place in the queue of the root: higher goes first.")
]
WaitOption = Annotated[
    bool,
    typer.Option("--wait/--no-wait", help="Queue while another sweep of this root runs; --no-wait fails instead."),
]
GlobsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[GLOB]...",
        help="Only trials whose name matches one of these globs.",
        show_default=False,
        autocompletion=complete.trials_of_sweep,
    ),
]
NameArgument = Annotated[str, typer.Argument(help="A sweep.", show_default=False, autocompletion=complete.sweeps)]
_ENDED = ("failed", "diverged", "stopped")
_LISTED = 8


@sweep_app.command(epilog="Example: prunegpt sweep stop quickstart")
def stop(
    name: NameArgument,
    trials: GlobsArgument = None,
    kill: Annotated[bool, typer.Option("--kill", help="Stop immediately, without a checkpoint.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the sweep has stopped.")] = True,
    root: Root = ROOT,
) -> None:
    """Stop a running sweep.

    Running stages write a checkpoint, from which `sweep resume` continues. A sweep that waits for its turn leaves the
    queue.

    With GLOB, only matching trials are stopped, until `sweep retry`; the sweep continues without them.
    """
    from prunegpt.sweep.control import Action, request, wait_for_end

    if trials:
        if kill:
            raise typer.BadParameter("--kill stops a whole sweep, and goes without GLOB.")
        open_ = [one for one in _results(name, root) if one.state in ("running", "waiting")]
        for one in _matching(open_, trials, f"trial of {name} that runs or waits"):
            request(root, Action("stop-trial", name, one.name))
            say(f"{name}/{one.name}: stop requested")
        return
    wish = request(root, Action("kill" if kill else "stop", name))
    if wish is None:
        say(f"{name}: left the queue")
        return
    say(f"{name}: stop requested" + ("" if kill else "; running stages write a checkpoint (--kill does not wait)"))
    if not wait:
        return
    wait_for_end(root, wish)
    say(f"{name}: stopped. Resume with: {root.command('sweep', 'resume', name)}")


@sweep_app.command(epilog="Example: prunegpt sweep resume quickstart --slots 2")
def resume(
    name: NameArgument,
    root: Root = ROOT,
    only: OnlyOption = None,
    launcher: LauncherOption = None,
    slots: SlotsOption = None,
    priority: PriorityOption = 0,
    wait: WaitOption = True,
    trust_remote_code: TrustOption = False,
) -> None:
    """Resume a sweep from its saved spec.

    In the folder that it was run in; no file is needed.

    Runs waiting and failed trials; to rerun diverged or stopped ones, use `sweep retry` first.
    """
    from prunegpt.api import stored
    from prunegpt.cli.tables import print_tables
    from prunegpt.errors import SpecError, StoreError
    from prunegpt.report.declared import tables_of
    from prunegpt.sweep.reopened import has_ended, reopened

    with ExitStack() as stack:
        try:
            planner = stack.enter_context(reopened(name, root, trust_remote_code=trust_remote_code))
        except (SpecError, StoreError):
            if not has_ended(name, root):
                raise
            print_tables(tables_of(stored(name, root)))
            say(f"{name}: all its trials have ended, and nothing is left to run. Its files have changed or are gone.")
            return
        execute(planner, root, RunOptions(only, launcher, slots, priority, wait))


@sweep_app.command(epilog="Example: prunegpt sweep retry quickstart 'distilled*'")
def retry(
    name: NameArgument,
    trials: GlobsArgument = None,
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Requeue failed, diverged or stopped trials.

    With GLOB also finished ones whose model was removed, to have it computed again and kept.

    A running sweep picks them up immediately; otherwise `sweep resume` runs them from their last checkpoint.
    """
    from prunegpt.store import Store
    from prunegpt.sweep.control import Action, request
    from prunegpt.sweep.lock import coordinator

    holder = coordinator(root)
    known = [result for result in _results(name, root) if not result.plan.foreign]
    bare = [] if holder or not trials else [result for result in known if root.lacks_model(result.plan.key)]
    ended = [result for result in known if result.state in _ENDED or result in bare]
    what = f"trial of {name} that failed, diverged, was stopped or lacks its model"
    names = [result.name for result in _matching(ended, trials or ["*"], what)]
    if holder:
        for one in names:
            request(root, Action("retry", name, one))
    else:
        with Store.open(root, create=False) as store:
            for result in bare:
                if result.name in names:
                    root.want_model(result.plan.key)
                    root.kept(result.plan.key).parent.mkdir(exist_ok=True)
                    root.kept(result.plan.key).touch()
            names = store.retry(name, names, finished=bool(bare))
    running = holder is not None and holder.sweep == name
    if as_json:
        print_json({"trials": names, "running": running})
        return
    for one in names:
        print(f"{name}/{one}")
    say("The running sweep picks them up." if running else f"{root.command('sweep', 'resume', name)} runs them.")


@sweep_app.command(epilog="Example: prunegpt sweep rm quickstart --stages")
def rm(
    name: NameArgument,
    stages: Annotated[
        bool, typer.Option("--stages", help="Also remove the models of its stages that no other sweep uses.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    root: Root = ROOT,
) -> None:
    """Remove a sweep: its trials, curves and logs.

    Models stay in the stage cache unless --stages is given.
    """
    from prunegpt.store import Store
    from prunegpt.sweep.lock import coordinating
    from prunegpt.sweep.removal import Removal

    with Store.open(root, create=False) as store, coordinating(root):
        removal = Removal.of(name, root, store, stages=stages)
        say(f"{name}: {counted(removal.trials, 'trial')}, {counted(removal.attempts, 'attempt')} with logs and curves")
        if stages:
            say(f"{counted(len(removal.stages), 'stage')}, {in_bytes(removal.bytes)}; what other sweeps use stays")
        if not yes:
            typer.confirm("Remove them? It cannot be undone.", abort=True, err=True)
        removal.remove(root, store)
    say(f"{name}: removed")


def _results(name: str, root: Root) -> "list[TrialResult]":
    from prunegpt.store import Store

    with Store.open(root, create=False) as store:
        return store.results(name)


def _matching(results: "list[TrialResult]", globs: list[str], what: str) -> "list[TrialResult]":
    from prunegpt.errors import StoreError, nearest

    for glob in globs:
        if not any(matches(one.name, glob) for one in results):
            names = nearest(glob, (one.name for one in results))
            raise StoreError(f"no {what} matches {glob!r}. There are: {listed(names, _LISTED)}.")
    return [one for one in results if matches(one.name, globs)]


@sweep_app.command(epilog="Example: prunegpt sweep study recover90 --out study.db")
def study(
    name: NameArgument,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="SQLite file: a new one, or an existing Optuna storage.", show_default=False),
    ],
    root: Root = ROOT,
) -> None:
    """Export the searches of a sweep as Optuna studies.

    For example for optuna-dashboard.

    Exporting again updates the studies; other studies in the file are kept.
    """
    from prunegpt.store import Store
    from prunegpt.sweep.search.export import write_studies

    with Store.open(root, create=False) as store:
        for written, trials in write_studies(out, store, name).items():
            say(f"{written}: {counted(trials, 'trial')}")
    print(shlex.join(["optuna-dashboard", f"sqlite:///{out}"]))
    say("(a package of its own: pip install optuna-dashboard)")


def write_figures(name: str, root: Root) -> None:
    """Writes the figures that a sweep declares below its root, each in its formats."""
    from prunegpt.api import declared
    from prunegpt.errors import PruneGPTError

    for spec, found in declared(name, root):
        if isinstance(found, PruneGPTError):
            say(f"figure {spec.name}: {found}")
            continue
        files = [root.path / "figures" / name / f"{spec.name}.{form}" for form in spec.formats]
        for file in files:
            found.save(file)
        say(f"Figure: {files[0]}" + "".join(f", {file.suffix}" for file in files[1:]))


def resume_command(name: str, root: Root, asked: RunOptions) -> str:
    """The command that resumes a run of a sweep as it was asked for."""
    given = [("--only", glob) for glob in globs(asked.only)]
    given += [("--launcher", asked.launcher)] if asked.launcher else []
    given += [("--slots", str(asked.slots))] if asked.slots else []
    return root.command("sweep", "resume", name, *(word for pair in given for word in pair))


def execute(planner: "Planner", root: Root, asked: RunOptions, *, tables: bool = True) -> None:
    """Runs what is not finished of a plan, when it is its turn, and prints its tables.

    Args:
        tables: False where standard output is for something else.

    Raises:
        LaunchError: another coordinator has the root and `wait` is off, or nothing can be started.
        typer.Exit: with 1, where trials failed or the run was interrupted.
    """
    from prunegpt.api import stored
    from prunegpt.cli.progress import follow
    from prunegpt.cli.tables import print_tables
    from prunegpt.report.declared import tables_of
    from prunegpt.running import prepare, start

    prepare(planner, root, asked)
    with follow(planner.plan) as on_event:
        outcome = start(planner, root, asked, on_event)
    plan = planner.plan
    if outcome.left_queue:
        say(f"interrupted: {plan.name} left the queue before its turn. Run the same command again.")
        raise typer.Exit(1)
    if tables and (found := tables_of(stored(plan.name, root))):
        print_tables(found)
    write_figures(plan.name, root)
    say(f"Results: {root.path} ({root.database.name}; models in stages/, logs in trials/{plan.name}/)")
    shown = (("sweep", "status", plan.name), ("table", plan.name), ("trial", "show", f"{plan.name}/TRIAL"), ("serve",))
    say(f"Show again: {'; '.join(root.command(*one) for one in shown)}")
    resume_it = resume_command(plan.name, root, asked)
    if outcome.failed:
        told = f"{counted(len(outcome.failed), 'trial')} did not finish: {listed(outcome.failed)}"
        say(f"{told}. See `prunegpt sweep status`.")
    if outcome.given_up:
        say(f"stopped early: {counted(len(outcome.given_up), 'trial')} ({listed(outcome.given_up)}).")
    if outcome.interrupted:
        say(f"interrupted. Resume with: {resume_it}")
    if outcome.reached and outcome.waiting:
        say(f"not started: {counted(len(outcome.waiting), 'trial')}, as {outcome.reached} had reached the target.")
    if outcome.no_room:
        say(
            f"waiting: {counted(len(outcome.waiting), 'trial')}; {outcome.no_room}. Free some, such as with "
            f"`prunegpt gc`; then: {resume_it}"
        )
    if outcome.failed or outcome.interrupted or outcome.no_room:
        raise typer.Exit(1)
