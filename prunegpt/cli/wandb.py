"""prunegpt wandb: sweeps that W&B, or `prunegpt serve` in its place, decides; runs sent later or brought in."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegpt.cli import complete
from prunegpt.cli.control import OnlyOption
from prunegpt.cli.options import ROOT, SetOption, number, say
from prunegpt.errors import counted
from prunegpt.root import Root

if TYPE_CHECKING:
    from prunegpt.records import AttemptRecord
    from prunegpt.spec.plan import SweepPlan, TrialPlan
    from prunegpt.sweep.attempt import Attempt

app = typer.Typer(help="Weights & Biases: sweeps, agents, import.", no_args_is_help=True)

EntityOption = Annotated[str | None, typer.Option("--entity", help="W&B team or user (default: the client's).")]


@app.command(epilog="Example: prunegpt wandb create search.yaml")
def create(
    spec: Annotated[Path, typer.Argument(help="A spec, or a W&B sweep config (YAML).", show_default=False)],
    root: Root = ROOT,
    overrides: SetOption = None,
    only: OnlyOption = None,
    project: Annotated[str | None, typer.Option(help="W&B project (default: the spec's tracking.project).")] = None,
    entity: EntityOption = None,
    interpreter: Annotated[
        str, typer.Option(help="Python interpreter that agents start (default: this one).")
    ] = sys.executable,
    show: Annotated[bool, typer.Option("--print", help="Print the W&B sweep config without creating it.")] = False,
) -> None:
    """Create a W&B sweep from a spec.

    On the server at WANDB_BASE_URL; prints ENTITY/PROJECT/ID.
    Any `wandb agent ENTITY/PROJECT/ID` on a machine that can read the root then runs its trials.
    """
    import json

    from prunegpt.planning.fingerprint import digest
    from prunegpt.planning.resolve import Planner
    from prunegpt.spec.wandb_config import config_of
    from prunegpt.sweep.curves import curves_in
    from prunegpt.tracking.client import register
    from prunegpt.tracking.ingest import save_sweep

    plan = Planner(spec, overrides or [], root, curves_in(root), strict=True).plan
    command = [
        "${env}",
        interpreter,
        *("-P", "-m", "prunegpt", "wandb", "trial", "${args_json_file}"),
        *("--spec", str(spec.absolute()), "--root", str(root.path), "--digest", digest([plan.spec])),
        *(part for override in overrides or [] for part in ("--set", override)),
    ]
    config = config_of(plan, command, str(spec), only)
    if show:
        print(json.dumps(config, indent=2, ensure_ascii=False))
        return
    save_sweep(root, plan)
    wanted = plan.tracking.wandb
    sweep = register(config, project=project or wanted.project, entity=entity or wanted.entity)
    print(sweep)
    say(f"Run it: prunegpt wandb agent {sweep}, or a plain `wandb agent {sweep}` on any machine that sees {root.path}")


@app.command(epilog="Example: prunegpt wandb agent local/prunegpt/abcd1234 --slots 2")
def agent(
    sweep: Annotated[
        str, typer.Argument(metavar="ENTITY/PROJECT/ID", help="ENTITY/PROJECT/ID, as printed by `create`.")
    ],
    slots: Annotated[int | None, typer.Option(min=1, help="Number of agents (default: one per GPU, else 1).")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of runs per agent (default: no limit).")
    ] = None,
) -> None:
    """Run `wandb agent`, one per slot.

    Each has its share of the machine. Ctrl-C lets running trials checkpoint.
    """
    from prunegpt.tracking.agents import run_agents

    raise typer.Exit(run_agents(sweep, slots=slots, count=count, say=say))


@app.command(epilog="Example: prunegpt wandb sync --dry-run")
def sync(
    sweep: Annotated[
        str | None,
        typer.Argument(
            help="Sweep whose trials are uploaded (default: all pending trials).", autocompletion=complete.sweeps
        ),
    ] = None,
    root: Root = ROOT,
    project: Annotated[str | None, typer.Option(help="Upload to this project instead of the recorded one.")] = None,
    entity: EntityOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List pending uploads without sending.")] = False,
) -> None:
    """Upload offline or failed runs with all their curves. Idempotent: each trial is uploaded once."""
    from prunegpt.store import Store
    from prunegpt.tracking.run_log import quiet
    from prunegpt.tracking.uploader import pending
    from prunegpt.tracking.uploader import sync as send

    if dry_run:
        with Store.open(root, create=False) as store:
            for _, result, before in pending(root, store, sweep):
                rows, problem = (before.rows, before.problem) if before else (0, "")
                print(f"{result.address}: {result.state}, {counted(rows, 'row')}: {problem or 'not sent'}")
        return
    quiet()
    kept = 0
    for done in send(root, sweep=sweep, project=project, entity=entity, say=say):
        kept += not done.sent
        print(f"{done.sweep}/{done.trial}: {'sent' if done.sent else done.problem}")
    if kept:
        say(f"still waiting: {counted(kept, 'trial')}. Run it again when W&B can be reached.")
        raise typer.Exit(1)


@app.command("import", epilog="Example: prunegpt wandb import wandb/ ; prunegpt wandb import my-team/my-project")
def import_(
    source: Annotated[
        str,
        typer.Argument(metavar="ENTITY/PROJECT[/SWEEP]|DIR", help="ENTITY/PROJECT, ENTITY/PROJECT/SWEEP, or a folder."),
    ],
    root: Root = ROOT,
) -> None:
    """Import runs from W&B as trials.

    They are those of the sweep wandb-PROJECT, so that tables can include them.
    DIR is a folder of the W&B client: `wandb/`, or one `offline-run-DATE-ID`. Importing again adds new runs.
    """
    from prunegpt.tracking.imports import import_folder, import_project

    folder = Path(source)
    found = import_folder(root, folder, say) if folder.is_dir() else import_project(root, source)
    for trial in found:
        print(trial)


def _closed(seconds: float) -> bool:
    """Whether standard input ends within the given seconds."""
    import select

    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready)


@app.command(hidden=True)
def upload(
    sweep: Annotated[str, typer.Argument(help="Sweep to upload.")],
    root: Root = ROOT,
) -> None:
    """Internal: upload a running sweep to W&B; reads its settings as JSON from standard input."""
    from prunegpt.spec.tracking import WandbSpec
    from prunegpt.tracking.client import Server, TrackingError
    from prunegpt.tracking.run_log import quiet
    from prunegpt.tracking.uploader import WandbUploader

    quiet()
    spec = WandbSpec.model_validate_json(sys.stdin.readline())
    try:
        server = Server.find() if spec.mode == "online" else None
    except TrackingError:
        server = None
    WandbUploader(root, sweep, spec, server, say).follow(_closed)


@app.command("upload-attempt", hidden=True)
def upload_attempt(folder: Annotated[Path, typer.Argument(help="Folder of the attempt.")]) -> None:
    """Internal: upload the attempt of an agent's run to W&B."""
    from prunegpt.tracking.run_log import quiet
    from prunegpt.tracking.uploader import upload_attempt as send

    quiet()
    send(folder, _closed)


@app.command(hidden=True)
def trial(
    arguments: Annotated[
        Path | None, typer.Argument(help="File with the run's arguments (default: $WANDB_SWEEP_PARAM_PATH).")
    ] = None,
    spec: Annotated[Path, typer.Option(help="Spec of the trial.")] = Path("sweep.yaml"),
    root: Root = ROOT,
    overrides: SetOption = None,
    digest: Annotated[str | None, typer.Option(help="Digest of the spec when the sweep was created.")] = None,
) -> None:
    """Internal: run the trial that matches an agent's arguments, and store its results."""
    from prunegpt.errors import Problem, PruneGPTError, SpecError
    from prunegpt.planning.fingerprint import digest as digest_of
    from prunegpt.planning.resolve import Planner
    from prunegpt.sweep.curves import curves_in
    from prunegpt.tracking.agents import PARAMETERS, read_arguments, trial_of
    from prunegpt.tracking.claims import claim

    given = arguments or (Path(os.environ[PARAMETERS]) if os.environ.get(PARAMETERS) else None)
    if given is None:
        raise SpecError([Problem("", f"an agent's run needs its arguments: name a file, or set {PARAMETERS}.")])
    try:
        planner = Planner(spec, overrides or [], root, curves_in(root), strict=True)
        if digest is not None and digest != digest_of([planner.plan.spec]):
            message = "the spec has changed since its sweep was created. Undo that, or create the sweep again."
            raise SpecError([Problem("", message)], str(spec))
        found = trial_of(planner, read_arguments(given), root)
        code = run_for_agent(root, planner.plan, found)
    except PruneGPTError as error:  # so that a run that fails before it is a trial is not given out again
        claim(root, state="failed", error=str(error))
        raise
    raise typer.Exit(code)


def run_for_agent(root: Root, plan: "SweepPlan", trial: "TrialPlan") -> int:
    """Runs a trial, which is in the store while it runs; gives the exit code: 0 where it finished.

    A stage that another agent computes is waited for, and so is a teacher.
    """
    from prunegpt.tracking.claims import claim
    from prunegpt.tracking.ingest import begin
    from prunegpt.tracking.run_log import summary_of
    from prunegpt.tracking.tracker import open_attempt

    claim(root, trial=f"{trial.sweep}/{trial.name}", state="running", error="", folder="", metrics={})
    problem = _teach(root, plan, trial)
    if problem:
        say(f"{trial.name}: {problem}")
        claim(root, state="failed", error=problem)
        return 1
    attempt = begin(root, plan, trial)
    claim(root, folder=str(attempt.folder.relative_to(root.path)))
    uploader = open_attempt(attempt.folder)
    record = _run(root, attempt)
    if uploader:
        uploader.close()
    finished = record.state == "finished"
    claim(root, state=record.state, error=record.error, metrics=summary_of(record) if finished else {})
    for stage in record.stages:
        perplexity = stage.evaluation.perplexity if stage.evaluation else None
        say(f"{trial.name}: {stage.kind}{' (cached)' if stage.cached else ''}: perplexity {number(perplexity)}")
    if not finished:
        say(f"{trial.name}: {record.state}: {record.error} The log is {attempt.folder / 'log.txt'}.")
    return 0 if finished else 1


def _teach(root: Root, plan: "SweepPlan", trial: "TrialPlan") -> str:
    """Runs the teachers that are not there yet, each once, whichever agents want it; what is wrong, if anything is."""
    from filelock import FileLock

    from prunegpt.tracking.ingest import begin

    for key in trial.needs:
        teacher = next((one for one in plan.trials if one.key == key), None)
        if root.is_published(key):
            continue
        if teacher is None:
            return f"it needs the stage {key} as its teacher, which no trial of the spec makes."
        lock = root.path / "wandb" / "locks" / f"{key}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if root.is_published(key):
                continue
            problem = _teach(root, plan, teacher)
            if problem:
                return problem
            say(f"{trial.name}: its teacher {teacher.name} is made first")
            record = _run(root, begin(root, plan, teacher))
        if record.state != "finished":
            return f"its teacher {teacher.name} ended as {record.state}: {record.error}"
    return ""


def _run(root: Root, attempt: "Attempt") -> "AttemptRecord":
    """Runs a new attempt, which the store follows to its end."""
    from prunegpt.launch.log import LOG
    from prunegpt.launch.worker import logging_to
    from prunegpt.tracking.ingest import Follower
    from prunegpt.trial import run_trial

    follower = Follower(root, attempt)
    with follower.following() as through, logging_to(attempt.folder / LOG):
        record = run_trial(attempt.folder, through, trust_remote_code=True)  # planned here
    follower.end(record)
    return record
