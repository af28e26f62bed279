"""prunegpt sweep stop, resume, retry, rm."""

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegpt.cli.evaluate import TrustOption
from prunegpt.cli.options import JsonOption, RootOption, number, print_json, say
from prunegpt.cli.running import LauncherOption, OnlyOption, SlotsOption, execute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prunegpt.planning.resolve import Planner
    from prunegpt.records import TrialResult
    from prunegpt.root import Root
    from prunegpt.spec.plan import TrialPlan

NameArgument = Annotated[str, typer.Argument(help="A sweep.", show_default=False)]
_ENDED = ("failed", "diverged", "stopped")
_LISTED = 8


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: prunegpt sweep stop quickstart")(stop)
    app.command(epilog="Example: prunegpt sweep resume quickstart --slots 2")(resume)
    app.command(epilog="Example: prunegpt sweep retry quickstart 'distilled*'")(retry)
    app.command(epilog="Example: prunegpt sweep rm quickstart --stages")(rm)


def stop(
    name: NameArgument,
    trial: Annotated[
        str | None, typer.Argument(metavar="[GLOB]", help="Only trials whose name matches.", show_default=False)
    ] = None,
    kill: Annotated[bool, typer.Option("--kill", help="At once, without a checkpoint.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it has stopped.")] = True,
    root: RootOption = None,
) -> None:
    """Stop a running sweep, from any terminal: running stages write a checkpoint, and `sweep resume` goes on there.

    With GLOB the sweep goes on without those trials: they count as stopped, until `sweep retry`.
    """
    from prunegpt.root import Root
    from prunegpt.sweep.control import Action, request, wait_for_end

    where = Root.find(root)
    if trial is not None:
        open_ = [one for one in _results(name, where) if one.state in ("running", "waiting")]
        for one in _matching(open_, trial, f"trial of {name} that runs or waits"):
            request(where, Action("stop-trial", name, one.name))
            say(f"{name}/{one.name}: asked to stop")
        return
    wish = request(where, Action("kill" if kill else "stop", name))
    say(f"{name}: asked to stop" + ("" if kill else "; running stages write a checkpoint (--kill does not wait)"))
    if not wait:
        return
    wait_for_end(where, wish)
    say(f"{name}: stopped. prunegpt sweep resume {name} goes on.")


def resume(
    name: NameArgument,
    root: RootOption = None,
    only: OnlyOption = None,
    launcher: LauncherOption = None,
    slots: SlotsOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Go on with a sweep, from the spec that the store keeps of it: no file is needed.

    Trials that are waiting or failed run; finished, diverged and stopped ones do not, see `sweep retry`.
    """
    from prunegpt.errors import StoreError, untrusted
    from prunegpt.planning.resolve import Planner
    from prunegpt.root import Root
    from prunegpt.store import Store
    from prunegpt.sweep.curves import curves_in

    where = Root.find(root)
    with Store.open(where, create=False) as store:
        known, before = store.sweep(name), store.results(name)
    if not known.spec:
        raise StoreError(
            f"a sweep must have been run before it is resumed, but {name} only has trials that taught those of others. "
            f"Run its spec with `prunegpt sweep run`."
        )
    path = Path(known.source) if known.source else None
    planner = Planner(known.spec, root=where, curves=curves_in(where), strict=True, path=path)
    trusted = sorted({source for trial in planner.plan.trials for source in trial.trusts})
    if not trust_remote_code and (trusted or _trusting(known.spec)):
        raise untrusted(f"the spec of {name} that is stored in {where.path}", trusted or ["its searches"])
    _check_places(planner, before)
    execute(planner, where, only=only, launcher=launcher, slots=slots)


def _check_places(planner: "Planner", before: "list[TrialResult]") -> None:
    """Refuses to go on where relative paths of the spec lead to other files than when the sweep was run.

    Raises:
        StoreError: they do; from another folder, as a rule.
    """
    from prunegpt.errors import StoreError

    plan = planner.plan
    tried = [chain.trial for found in planner.searched.values() for chain in found]
    planned = [trial for trial in (*plan.trials, *tried) if trial.sweep == plan.name]
    was, now = _files_by_name(result.plan for result in before), _files_by_name(planned)
    for name in was.keys() & now.keys():
        if (gone := was[name] - now[name]) and (other := now[name] - was[name]):
            raise StoreError(
                f"a sweep is resumed with the files that it was run with, but {name} would read {min(other)} instead "
                f"of {min(gone)}. Go to the folder that {plan.name} was run in and resume it there, or give its spec "
                f"to `prunegpt sweep run` if the other files are meant."
            )


def _files_by_name(trials: "Iterable[TrialPlan]") -> dict[str, set[str]]:
    """Trial, or the search that suggested it -> the local files that it reads."""
    found: dict[str, set[str]] = {}
    for trial in trials:
        found.setdefault(trial.search or trial.name, set()).update(trial.inputs)
    return found


def _trusting(node: object, key: str = "") -> bool:
    """Whether a spec says trust_remote_code anywhere, in searches and what is varied too, and does not say false."""
    if key.rpartition(".")[2] == "trust_remote_code":
        return node is not False
    if isinstance(node, dict):
        return any(_trusting(value, name) for name, value in node.items())
    return isinstance(node, list) and any(_trusting(value) for value in node)


def retry(
    name: NameArgument,
    trial: Annotated[
        str, typer.Argument(metavar="[GLOB]", help="Only trials whose name matches.", show_default=False)
    ] = "*",
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let trials wait again that failed, diverged or were stopped.

    A running sweep takes them up at once; otherwise `sweep resume` runs them, from their last checkpoint on.
    """
    from prunegpt.root import Root
    from prunegpt.store import Store
    from prunegpt.sweep.control import Action, request
    from prunegpt.sweep.lock import coordinator

    where = Root.find(root)
    ended = [one for one in _results(name, where) if one.state in _ENDED and not one.plan.foreign]
    names = [one.name for one in _matching(ended, trial, f"trial of {name} that failed, diverged or was stopped")]
    running = coordinator(where) is not None
    if running:
        for one in names:
            request(where, Action("retry", name, one))
    else:
        with Store.open(where, create=False) as store:
            names = store.retry(name, names)
    if as_json:
        print_json({"trials": names, "running": running})
        return
    for one in names:
        print(f"{name}/{one}")
    say("The running sweep takes them up." if running else f"prunegpt sweep resume {name} runs them.")


def rm(
    name: NameArgument,
    stages: Annotated[
        bool, typer.Option("--stages", help="Also the models of its stages, those that nothing else uses.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    root: RootOption = None,
) -> None:
    """Remove a sweep: its trials, curves and logs. Models stay in the cache for others, unless --stages."""
    from prunegpt.root import Root
    from prunegpt.store import Store
    from prunegpt.sweep.lock import coordinating
    from prunegpt.sweep.removal import Removal

    where = Root.find(root)
    with Store.open(where, create=False) as store, coordinating(where):
        removal = Removal.of(name, where, store, stages=stages)
        say(f"{name}: {removal.trials} trials, {removal.attempts} attempts with their logs and curves")
        if stages:
            say(f"{len(removal.stages)} stages, {number(removal.bytes / 1e9)} GB; what other sweeps use stays")
        if not yes:
            typer.confirm("Remove them? It cannot be undone.", abort=True, err=True)
        removal.remove(where, store)
    say(f"{name}: removed")


def _results(name: str, root: "Root") -> "list[TrialResult]":
    from prunegpt.store import Store

    with Store.open(root, create=False) as store:
        return store.results(name)


def _matching(results: "list[TrialResult]", glob: str, what: str) -> "list[TrialResult]":
    from prunegpt.errors import StoreError, nearest

    found = [one for one in results if fnmatch.fnmatchcase(one.name, glob)]
    if not found:
        names = nearest(glob, [one.name for one in results])[:_LISTED]
        raise StoreError(f"{glob!r} must match a {what}, but matches none. There are: {', '.join(names) or 'none'}.")
    return found
