"""A database that is missing or damaged, and making it again from the records of the attempts."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from prunegpt.errors import StoreError
from prunegpt.points import read_points
from prunegpt.records import AttemptRecord
from prunegpt.root import Root, set_aside
from prunegpt.spec.plan import SweepPlan, TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.failures import left_open
from prunegpt.sweep.recovery import planned
from prunegpt.sweep.repair.finding import Finding

_FILES = ("prunegpt.db", "prunegpt.db-wal", "prunegpt.db-shm", "prunegpt.db-journal")
_REBUILD = (
    "make it again from trials/: states, figures and curves come back; notes, and which tables a spec asks for, do not "
    "(the next `sweep run` of the spec brings its tables back)"
)


def broken_database(root: Root) -> Iterator[Finding]:
    """A database that is not there though trials are, or that cannot be read."""
    if not root.database.exists():
        if any(attempt_folders(root)):
            text = "the database is missing, but there are attempts: it was deleted, or not copied with the rest."
            yield Finding("database", root.database, text, _REBUILD, apply=lambda: rebuild(root))
        return
    problem = _problem(root.database, empty=not any(attempt_folders(root)))
    if problem:
        text = f"the database is damaged ({problem}): it was cut, or copied while it was written."
        fix = f"set it aside and {_REBUILD}"
        yield Finding("database", root.database, text, fix, apply=lambda: rebuild(root))
        return
    try:
        store = Store.open(root, create=False)
    except StoreError as error:
        yield Finding("database", root.database, str(error))
        return
    with store:
        try:
            store.sweeps()
        except StoreError as error:
            fix = f"set it aside and {_REBUILD}"
            yield Finding("database", root.database, str(error), fix, apply=lambda: rebuild(root))


def opens(root: Root) -> bool:
    """Whether there is a database that can be read."""
    return root.database.exists() and not any(broken_database(root))


def _problem(path: Path, *, empty: bool) -> str:
    """What is wrong with a database; `empty`: whether it may hold nothing."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            told = [str(row[0]) for row in connection.execute("PRAGMA quick_check(1)")]
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    except sqlite3.Error as error:
        return str(error)
    if told != ["ok"]:
        return told[0].splitlines()[0]
    return "" if "alembic_version" in tables or (empty and not tables) else "it has no tables"


def attempt_folders(root: Root) -> Iterator[Path]:
    """ROOT/trials/SWEEP/TRIAL/attempt-N, by sweep, trial and number."""
    found = [folder for folder in (root.path / "trials").glob("*/*/attempt-*") if _number(folder)]
    yield from sorted(found, key=lambda folder: (folder.parent, _number(folder)))


def _number(folder: Path) -> int:
    digits = folder.name.partition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def plan_in(folder: Path) -> TrialPlan | None:
    """The trial of an attempt folder by its path; None where trial.json cannot be read."""
    plan = planned(folder)
    return plan and plan.model_copy(update={"sweep": folder.parent.parent.name, "name": folder.parent.name})


def record_in(folder: Path) -> AttemptRecord | None:
    """The record of an attempt folder by its path; None where there is none that can be read."""
    try:
        record: AttemptRecord = AttemptRecord.read(folder / "record.json")
    except (OSError, ValueError):
        return None
    own = {"sweep": folder.parent.parent.name, "trial": folder.parent.name, "attempt": _number(folder)}
    return record.model_copy(update=own)


def rebuild(root: Root) -> None:
    """Makes the database from trials/, as if its attempts had been followed in their order."""
    for name in _FILES:
        if (root.path / name).exists():
            set_aside(root.path / name)
    planned = [(folder, plan) for folder in attempt_folders(root) if (plan := plan_in(folder))]
    latest = {(plan.sweep, plan.name): plan for _, plan in planned}
    with Store.open(root) as store:
        for sweep in dict.fromkeys(name for name, _ in latest):
            trials = sorted((plan for plan in latest.values() if plan.sweep == sweep), key=lambda plan: plan.order)
            store.save_sweep(SweepPlan(name=sweep, title=sweep, trials=tuple(trials)))
        for folder, plan in planned:
            _replay(root, store, folder, plan)
        for plan in latest.values():
            store.add_trial(plan)


def _replay(root: Root, store: Store, folder: Path, plan: TrialPlan) -> None:
    saved = store.add_trial(plan)
    record = record_in(folder)
    begun = record.started if record else (folder / "trial.json").stat().st_mtime
    started = store.start_attempt(saved.id, at_least=_number(folder), started=begun)
    points, offset = read_points(folder / "points.jsonl")
    store.add_points(started.id, points, offset=offset)
    record = record or AttemptRecord(
        sweep=plan.sweep,
        trial=plan.name,
        attempt=started.number,
        state="failed",
        reason="lost",
        error="it left no record that could be read when the database was made again.",
        started=begun,
    )
    store.finish_attempt(record, state=left_open(record, plan))
