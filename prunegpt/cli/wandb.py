"""prunegpt wandb: sweeps that W&B, or `prunegpt serve` in its place, decides; runs sent later or brought in."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from prunegpt.cli.options import RootOption, SetOption, say

app = typer.Typer(
    help="Weights & Biases: register sweeps, run agents, send runs later, bring runs in.", no_args_is_help=True
)

OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="GLOB", help="Only trials, or the search, whose name matches.")
]
ProjectOption = Annotated[
    str | None, typer.Option("--project", help="Project; the spec's tracking.wandb.project else.")
]
EntityOption = Annotated[str | None, typer.Option("--entity", help="Team or user; the client's own default else.")]


@app.command(epilog="Example: prunegpt wandb create sweeps/quickstart.yaml")
def create(
    spec: Annotated[Path, typer.Argument(help="A spec, or a W&B sweep config (YAML).", show_default=False)],
    root: RootOption = None,
    overrides: SetOption = None,
    only: OnlyOption = None,
    project: ProjectOption = None,
    entity: EntityOption = None,
    interpreter: Annotated[
        str, typer.Option("--interpreter", help="The Python that agents start; this one where not given.")
    ] = sys.executable,
    show: Annotated[bool, typer.Option("--print", help="Print the sweep config and register nothing.")] = False,
) -> None:
    """Turn a spec into a W&B sweep and register it where WANDB_BASE_URL points; prints ENTITY/PROJECT/ID.

    Any `wandb agent ENTITY/PROJECT/ID` on a machine that sees the root then runs its trials.
    """
    import json

    from prunegpt.planning.resolve import Planner
    from prunegpt.root import Root
    from prunegpt.spec.wandb_config import config_of
    from prunegpt.sweep.curves import curves_in
    from prunegpt.tracking.client import register
    from prunegpt.tracking.ingest import save_sweep

    where = Root.find(root)
    plan = Planner(spec, overrides or [], where, curves_in(where), strict=True).plan
    command = [
        "${env}",
        interpreter,
        *("-m", "prunegpt", "wandb", "trial", "${args_json_file}"),
        *("--spec", str(spec.absolute()), "--root", str(where.path), "--digest", digest_of(plan.spec)),
        *(part for override in overrides or [] for part in ("--set", override)),
    ]
    config = config_of(plan, command, str(spec), only)
    if show:
        print(json.dumps(config, indent=2, ensure_ascii=False))
        return
    save_sweep(where, plan)
    wanted = plan.tracking.wandb
    sweep = register(config, project=project or wanted.project, entity=entity or wanted.entity)
    print(sweep)
    say(f"Run it: prunegpt wandb agent {sweep}, or a plain `wandb agent {sweep}` on any machine that sees {where.path}")


@app.command(epilog="Example: prunegpt wandb agent local/prunegpt/abcd1234 --slots 2")
def agent(
    sweep: Annotated[str, typer.Argument(metavar="ENTITY/PROJECT/ID", help="As `create` printed it.")],
    slots: Annotated[
        int | None, typer.Option("--slots", min=1, help="Agents; one a GPU, or one, where not given.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Runs of each agent; all where not given.")
    ] = None,
) -> None:
    """Run `wandb agent`, one a slot, each with its share of the machine. Ctrl-C once lets running trials end well."""
    from prunegpt.tracking.agents import run_agents

    raise typer.Exit(run_agents(sweep, slots=slots, count=count, say=say))


@app.command(epilog="Example: prunegpt wandb sync --dry-run")
def sync(
    sweep: Annotated[
        str | None, typer.Argument(help="Every trial of this sweep; what waits of all where not given.")
    ] = None,
    root: RootOption = None,
    project: Annotated[str | None, typer.Option("--project", help="Another project than they were kept for.")] = None,
    entity: EntityOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what waits, and send nothing.")] = False,
) -> None:
    """Send what could not be sent, or was kept: trials, with all their curves, each once however often this is run."""
    from prunegpt.root import Root
    from prunegpt.spec.tracking import WandbSpec
    from prunegpt.tracking.run_log import quiet
    from prunegpt.tracking.uploader import all_posted
    from prunegpt.tracking.uploader import sync as send

    where = Root.find(root)
    if dry_run:
        for one in all_posted(where):
            if not one.sent and sweep in (None, one.sweep):
                print(f"{one.sweep}/{one.trial}: {one.state}, {one.rows} rows: {one.problem or 'not sent'}")
        return
    quiet()
    given = WandbSpec(mode="online", project=project or "prunegpt", entity=entity) if project or entity else None
    kept = 0
    for done in send(where, sweep=sweep, spec=given, say=say):
        kept += not done.sent
        print(f"{done.trial}: {'sent' if done.sent else done.problem}")
    if kept:
        say(f"{kept} trials still wait. Run it again when W&B can be reached.")
        raise typer.Exit(1)


@app.command("import", epilog="Example: prunegpt wandb import wandb/ ; prunegpt wandb import my-team/my-project")
def import_(
    source: Annotated[
        str, typer.Argument(metavar="ENTITY/PROJECT[/SWEEP]|DIR", help="A project, a sweep, or a folder.")
    ],
    root: RootOption = None,
) -> None:
    """Bring runs made elsewhere into the store, as trials of the sweep wandb-PROJECT, so that tables cover them.

    DIR is a folder of the W&B client: `wandb/`, or one `offline-run-DATE-ID`. Importing again adds what is new.
    """
    from prunegpt.root import Root
    from prunegpt.tracking.imports import import_folder, import_project

    where = Root.find(root)
    folder = Path(source)
    found = import_folder(where, folder) if folder.is_dir() else import_project(where, source)
    for trial in found:
        print(trial)


def _closed(seconds: float) -> bool:
    """Whether standard input ends within so many seconds."""
    import select

    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready)


@app.command(hidden=True)
def upload(
    sweep: Annotated[str, typer.Argument(help="The sweep that is sent.")],
    root: RootOption = None,
) -> None:
    """What `sweep run` starts beside itself where tracking is on: it reads how as JSON, and ends with its input."""
    from prunegpt.root import Root
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
    WandbUploader(Root.find(root), sweep, spec, server, say).follow(_closed)


@app.command("upload-attempt", hidden=True)
def upload_attempt(folder: Annotated[Path, typer.Argument(help="Of an attempt that an agent runs.")]) -> None:
    """What an agent's run starts beside itself: sends the attempt to W&B, and ends with its input."""
    from prunegpt.tracking.run_log import quiet
    from prunegpt.tracking.uploader import upload_attempt as send

    quiet()
    send(folder, _closed)


@app.command(hidden=True)
def trial(
    arguments: Annotated[
        Path | None, typer.Argument(help="File of the run's arguments; WANDB_SWEEP_PARAM_PATH where not given.")
    ] = None,
    spec: Annotated[Path, typer.Option("--spec", help="The spec whose trial is run.")] = Path("sweep.yaml"),
    root: RootOption = None,
    overrides: SetOption = None,
    digest: Annotated[str | None, typer.Option("--digest", help="Of the spec when the sweep was created.")] = None,
) -> None:
    """What an agent starts: find the trial that its arguments mean, run it under the root, store what came of it."""
    from prunegpt.cli.agent_trial import failing, run_for_agent
    from prunegpt.errors import Problem, SpecError
    from prunegpt.planning.resolve import Planner
    from prunegpt.root import Root
    from prunegpt.sweep.curves import curves_in
    from prunegpt.tracking.agents import PARAMETERS, read_arguments, trial_of

    where = Root.find(root)
    given = arguments or (Path(os.environ[PARAMETERS]) if os.environ.get(PARAMETERS) else None)
    if given is None:
        raise SpecError([Problem("", f"an agent's run needs its arguments: name a file, or set {PARAMETERS}.")])
    with failing(where):
        planner = Planner(spec, overrides or [], where, curves_in(where), strict=True)
        if digest is not None and digest != digest_of(planner.plan.spec):
            message = "the spec has changed since its sweep was created. Undo that, or create the sweep again."
            raise SpecError([Problem("", message)], str(spec))
        found = trial_of(planner, read_arguments(given), where)
        code = run_for_agent(where, planner.plan, found)
    raise typer.Exit(code)


def digest_of(spec: object) -> str:
    """What a spec is recognised by."""
    from prunegpt.planning.fingerprint import digest

    return digest([spec])
