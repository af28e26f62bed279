"""A trial that ran without a coordinator goes into the store: at its end, in one short turn of its own."""

import os
from pathlib import Path

from filelock import FileLock

from prunegpt.errors import StoreError
from prunegpt.launch.log import LOG, last_lines
from prunegpt.records import AttemptRecord, read_points
from prunegpt.root import Root, write_text
from prunegpt.spec.plan import SweepPlan, TrialPlan
from prunegpt.store import Store

_LINES = 40  # of the log, kept of what did not finish


def new_attempt(root: Root, trial: TrialPlan) -> Path:
    """A new folder of an attempt with its trial.json; its number is above all that are on disk and in the store."""
    home = root.trial(trial.sweep, trial.name)
    home.mkdir(parents=True, exist_ok=True)
    number = max(_numbers(home), _stored(root, trial)) + 1
    while True:
        folder = root.attempt(trial.sweep, trial.name, number)
        try:
            folder.mkdir()
            break
        except FileExistsError:  # another agent was faster
            number += 1
    write_text(folder / "trial.json", trial.model_dump_json(indent=2) + "\n")
    return folder


def ingest(root: Root, plan: SweepPlan, trial: TrialPlan, record: AttemptRecord) -> Path:
    """Stores an attempt that has ended; gives its folder, which is renamed where its number was taken meanwhile."""
    with turn(root), Store.open(root) as store:
        try:
            store.sweep(trial.sweep)
        except StoreError:
            store.save_sweep(plan)
        saved = store.add_trial(trial)
        started = store.start_attempt(saved.id, at_least=record.attempt)
        own = root.attempt(trial.sweep, trial.name, record.attempt)
        folder = root.path / started.folder
        if folder != own:
            os.rename(own, folder)
        points, offset = read_points(folder / "points.jsonl")
        store.add_points(started.id, points, offset=offset)
        log = "" if record.state == "finished" else last_lines(folder / LOG, _LINES)
        store.finish_attempt(record.model_copy(update={"attempt": started.number}), log=log)
        return folder


def save_sweep(root: Root, plan: SweepPlan) -> None:
    """Makes a sweep and its trials known, as `sweep run` does before it starts them."""
    with turn(root), Store.open(root) as store:
        store.save_sweep(plan)


def turn(root: Root) -> FileLock:
    """The right to write what ran without a coordinator; whoever wants it waits for a moment."""
    root.path.mkdir(parents=True, exist_ok=True)
    return FileLock(root.path / ".ingest.lock")


def _numbers(home: Path) -> int:
    numbers = [path.name.removeprefix("attempt-") for path in home.glob("attempt-*")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _stored(root: Root, trial: TrialPlan) -> int:
    try:
        with Store.open(root, create=False) as store:
            return max((row.number for row in store.attempts(f"{trial.sweep}/{trial.name}")), default=0)
    except StoreError:
        return 0
