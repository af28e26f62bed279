"""Runs made elsewhere into the store: from the W&B API, or from the client's own folders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.tracking.client import TrackingError
from prunegpt.tracking.foreign import ForeignRun, Keeper, State
from prunegpt.tracking.ingest import turn
from prunegpt.tracking.offline import read_run, run_files

_ENDED: Mapping[str, State] = {"finished": "finished", "failed": "failed", "crashed": "failed", "killed": "stopped"}


def import_folder(root: Root, folder: Path) -> Iterator[str]:
    """Takes in every run of a folder of the W&B client; gives SWEEP/TRIAL of each.

    A run in several files, one a resumption, is one trial; a file that was taken in before adds nothing.

    Raises:
        TrackingError: there is no run.
    """
    files = run_files(folder)
    if not files:
        raise TrackingError(
            f"{folder} must hold runs of the W&B client, folders such as offline-run-DATE-ID, but holds none."
        )
    configs: dict[str, Mapping[str, Any]] = {}  # by run: a resumption tells only what it was started with
    for file in files:
        found = read_run(file)
        configs[found.run.id] = {**configs.get(found.run.id, {}), **(found.run.config or {})}
        run = replace(found.run, config=configs[found.run.id])
        state: State = "finished" if found.exit_code == 0 else "failed"
        problem = "" if found.exit_code == 0 else f"it ended with {found.exit_code}."
        if found.exit_code is None:
            problem = "it never ended: its file stops before."
        yield _keep(root, run, found.rows, found.summary, state, problem)


def import_project(root: Root, path: str, api: Any = None) -> Iterator[str]:
    """Takes in every run of ENTITY/PROJECT or of its sweep ENTITY/PROJECT/SWEEP; gives SWEEP/TRIAL of each.

    Args:
        api: a `wandb.Api`; a new one where not given.

    Raises:
        TrackingError: W&B cannot be reached, or has no such project.
    """
    parts = path.strip("/").split("/")
    if len(parts) not in (2, 3):
        raise TrackingError(f"what is imported must be ENTITY/PROJECT or ENTITY/PROJECT/SWEEP, but got {path!r}.")
    entity, project = parts[:2]
    try:
        if api is None:
            import wandb

            api = wandb.Api()
        runs = api.sweep(path).runs if len(parts) == 3 else api.runs(f"{entity}/{project}")
        for run in runs:
            yield _import_run(root, entity, project, run)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"W&B has not given {path}: {error}. Check its name, WANDB_API_KEY and the network."
        ) from error


def _import_run(root: Root, entity: str, project: str, run: Any) -> str:
    found = ForeignRun(
        entity=entity,
        project=project,
        id=run.id,
        name=run.name or "",
        group=getattr(run, "group", None) or (run.sweep.id if getattr(run, "sweep", None) else ""),
        config={key: value for key, value in dict(run.config).items() if not key.startswith("_")},
        created=_seconds(getattr(run, "created_at", "")),
    )
    rows = [dict(row) for row in run.scan_history()]
    summary = dict(getattr(run.summary, "_json_dict", run.summary))
    state = _ENDED.get(run.state, "failed")
    return _keep(root, found, rows, summary, state, "" if state == "finished" else f"it is {run.state} at W&B.")


def _keep(
    root: Root,
    run: ForeignRun,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    state: State,
    problem: str,
) -> str:
    with turn(root), Store.open(root) as store:
        keeper = Keeper(root, store, run)
        try:
            first = keeper.last_step
            new = [row for row in rows if int(row.get("_step", 0)) > first]
            keeper.add(new, keeper.lines)
            keeper.update(run, {**keeper.summary, **summary})
            keeper.end(state, problem)
        finally:
            keeper.close()
    return f"{run.sweep}/{run.trial}"


def _seconds(stamp: str) -> float:
    from datetime import UTC, datetime

    try:
        parsed = datetime.fromisoformat(stamp.replace("Z", "+00:00"))
    except (ValueError, AttributeError):
        return 0.0
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
