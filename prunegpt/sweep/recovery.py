"""What an earlier coordinator or agent left behind: attempts that are marked as running, but do not run."""

import os
import socket
from pathlib import Path

from prunegpt.launch.slurm_left import end_left
from prunegpt.records import AttemptRecord, published_record
from prunegpt.root import Root, read_json, write_json
from prunegpt.spec.part import in_short
from prunegpt.spec.plan import TrialPlan
from prunegpt.store import AttemptRow, Store
from prunegpt.sweep.attempt import Attempt
from prunegpt.sweep.failures import left_open
from prunegpt.sweep.lock import lives

OUTSIDE = "outside.json"  # in the folder of an attempt that no coordinator of ours runs; touched when it speaks
_SILENT = 600.0  # seconds
_NO_CLIENT = f"its client has not reported for {_SILENT:g} s."


def recover(root: Root, store: Store) -> list[str]:
    """Closes the attempts that a coordinator left running; gives their trials, SWEEP/TRIAL.

    Those that outlive it are ended first. That is Slurm's jobs: local workers die with their coordinator, and so do
    Ray's actors, which are not detached.

    An attempt that left its record.json counts as what the record says, and its points are stored. Any other is failed
    with the reason `lost`, and its trial is requeued; stages that it published count as computed by it. So is one
    whose files cannot be read: none keeps the others from being closed. Foreign runs that still send heartbeats
    are left alone.

    Raises:
        LaunchError: jobs of the earlier coordinator may still run.
    """
    end_left(root)
    lost = [row for row in store.running_attempts() if not is_outside(root.path / row.folder)]
    for row in lost:
        _close(root, store, row)
    return [f"{row.sweep}/{row.trial}" for row in lost]


def recover_agents(root: Root, store: Store) -> bool:
    """Closes the attempts whose agents or clients are gone, as `recover` does; whether others still run.

    Attempts of a coordinator are left alone, so that this may be asked beside one.
    """
    running = [row for row in store.running_attempts() if (root.path / row.folder / OUTSIDE).exists()]
    gone = [row for row in running if not is_outside(root.path / row.folder)]
    for row in gone:
        _close(root, store, row)
    return len(gone) < len(running)


def mark_outside(folder: Path) -> None:
    """Says that this process runs the attempt in a folder, without a coordinator; touch the file now and then."""
    write_json(folder / OUTSIDE, {"pid": os.getpid(), "host": socket.gethostname()})


def is_outside(folder: Path, silent: float = _SILENT) -> bool:
    """Whether an attempt is a run that no coordinator here has started, and that still lives.

    It must have a recent heartbeat, by the clock of the file system; and its process must be there, where
    it is one of this machine.
    """
    try:
        spoke, now = (folder / OUTSIDE).stat().st_mtime, Root(folder.parents[3]).now()
        if spoke > now:  # that clock was set back: what it says now counts from now on
            os.utime(folder / OUTSIDE)
        if now - spoke >= silent:
            return False
    except OSError:
        return False
    process = _process(folder)
    return process is None or process[1] != socket.gethostname() or lives(process[0])


def _process(folder: Path) -> tuple[int, str] | None:
    """Process and host of the agent's run in a folder; None where it is something else."""
    try:
        found = read_json(folder / OUTSIDE)
        return int(found["pid"]), str(found["host"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None


def _close(root: Root, store: Store, row: AttemptRow) -> None:
    try:
        record, log = ending_of(root, store, row)
    except (OSError, ValueError, ArithmeticError) as error:
        record, log = _lost(row, f"what it left cannot be read: {in_short(error)}"), ""
    state = left_open(record, planned(root.path / row.folder))
    store.finish_attempt(record, state=state, log="" if record.state == "finished" else log)


def ending_of(root: Root, store: Store, row: AttemptRow) -> tuple[AttemptRecord, str]:
    """How an attempt ended, and the end of its log; its points and stages are stored.

    Raises:
        OSError, ValueError, ArithmeticError: its files are not what an attempt writes.
    """
    folder = root.path / row.folder
    plan = planned(folder)
    if plan is None:
        return _lost(row, "its coordinator ended before it was started."), ""
    attempt = Attempt(row.id, row.number, plan, folder, started=row.started, offset=row.offset)
    record = _lost(row, _NO_CLIENT) if plan.foreign and not (folder / "record.json").exists() else attempt.record(None)
    _credit(root, store, row, plan)
    attempt.store_points(store)
    return record, attempt.last_words()


def planned(folder: Path) -> TrialPlan | None:
    """The trial of an attempt's folder; None where it cannot be read."""
    try:
        return TrialPlan.model_validate_json((folder / "trial.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lost(row: AttemptRow, error: str) -> AttemptRecord:
    """Of an attempt that left none."""
    return AttemptRecord(
        sweep=row.sweep,
        trial=row.trial,
        attempt=row.number,
        state="failed",
        reason="lost",
        error=error,
        started=row.started,
    )


def _credit(root: Root, store: Store, row: AttemptRow, plan: TrialPlan) -> None:
    """Stages that appeared while it ran, and that are not in the store yet, are its work: nobody else ran them."""
    known = {stage.key for stage in store.stages()}
    begun = (root.path / row.folder / "trial.json").stat().st_mtime  # by the clock that stamps the stages, too
    for index, key in enumerate(row.chain):
        file = root.stage(key) / "stage.json"
        if key in known or not file.exists() or file.stat().st_mtime < begun:
            continue
        try:
            store.record_stage(published_record(root, plan, index, cached=False), row.id)
        except (OSError, ValueError):
            continue  # the trial that needs the stage will report what is wrong with it
