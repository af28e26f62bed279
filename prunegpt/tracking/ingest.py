"""A trial that runs without a coordinator is in the store from its start: its own process writes what a coordinator
would, in short transactions beside those of others.
"""

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

from prunegpt.errors import PruneGPTError, StoreError
from prunegpt.launch.log import LOG, last_lines
from prunegpt.records import AttemptRecord, StageRecord
from prunegpt.root import Root, write_text
from prunegpt.spec.plan import SweepPlan, TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.attempt import Attempt, last_number
from prunegpt.sweep.recovery import OUTSIDE, mark_outside, recover_agents

_LINES = 40  # of the log, kept of what did not finish
_FOLLOW = 1.0  # seconds between polls of the attempt's files
_REAP = 10.0  # seconds between two looks for attempts whose agents are gone
_LINGER = 120.0  # seconds without attempts and without a word of agents after which nobody looks


def begin(root: Root, plan: SweepPlan, trial: TrialPlan) -> Attempt:
    """A new attempt of a trial, which runs from now on; attempts that dead agents left are closed before it."""
    with turn(root), Store.open(root) as store:
        recover_agents(root, store)
        return start(root, store, plan, trial, last_number(root.trial(trial.sweep, trial.name)) + 1)


def start(root: Root, store: Store, plan: SweepPlan, trial: TrialPlan, at_least: int = 1) -> Attempt:
    """A new attempt of a trial without a coordinator, with its folder; its number is `at_least` that.

    Raises:
        OSError: the folder cannot be made; the attempt has failed.
    """
    try:
        store.sweep(trial.sweep)
    except StoreError:
        store.save_sweep(plan)
    saved = store.add_trial(trial)
    started = store.start_attempt(saved.id, at_least=at_least)
    folder = root.path / started.folder
    try:
        mark_outside(folder)
        write_text(folder / "trial.json", trial.model_dump_json(indent=2) + "\n")
    except OSError as error:
        record = AttemptRecord(
            sweep=trial.sweep,
            trial=trial.name,
            attempt=started.number,
            state="failed",
            reason="launch",
            error=f"its folder cannot be made: {error}.",
        )
        store.finish_attempt(record)
        raise
    return Attempt(started.id, started.number, trial, folder)


@dataclass
class Follower:
    """Takes a running attempt into the store: its points as they come, and its stages.

    Nothing that the database or the disk may say ends the attempt: it is tried again at the next look.
    """

    root: Root
    attempt: Attempt
    _stages: "queue.SimpleQueue[StageRecord]" = field(default_factory=queue.SimpleQueue)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def following(self, every: float = _FOLLOW) -> Iterator[Callable[[StageRecord], None]]:
        """Polls at an interval while the context is open; returns what is to be reported about stages."""
        thread = threading.Thread(target=self._follow, args=(every,), name="follower", daemon=True)
        thread.start()
        try:
            yield self._stages.put
        finally:
            self._over.set()
            thread.join()

    def end(self, record: AttemptRecord) -> None:
        """Stores what is left, and how the attempt ended."""
        with turn(self.root), Store.open(self.root) as store:
            self.attempt.store_points(store)
            log = "" if record.state == "finished" else last_lines(self.attempt.folder / LOG, _LINES)
            store.finish_attempt(record.model_copy(update={"attempt": self.attempt.number}), log=log)

    def _follow(self, every: float) -> None:
        store: Store | None = None
        while not self._over.wait(every):
            with suppress(StoreError, SQLAlchemyError, OSError):
                os.utime(self.attempt.folder / OUTSIDE)
                store = store or Store.open(self.root)
                self.attempt.store_points(store)
                while not self._stages.empty():  # a record that is lost here comes with that of the attempt
                    store.record_stage(self._stages.get(), self.attempt.id)
        if store is not None:
            store.close()


class StaleRunReaper:
    """A thread that is there as long as agents run attempts under a root, or are about to."""

    def __init__(self, root: Root, every: float = _REAP, linger: float = _LINGER) -> None:
        self._root = root
        self._every = every
        self._linger = linger
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._woken = -math.inf

    def wake(self, *, soon: bool = True) -> None:
        """There may be attempts of agents; with `soon` they may also come in the next minutes."""
        with self._lock:
            self._woken = time.monotonic() if soon else self._woken
            idle = self._thread is None or not self._thread.is_alive()
            if idle and not self._over.is_set() and self._root.database.exists():
                self._thread = threading.Thread(target=self._watch, name="reaper", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ends the thread, after the look that it may be at."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while self._look() or time.monotonic() - self._woken < self._linger:
            if self._over.wait(self._every):
                return

    def _look(self) -> bool:
        """Closes attempts whose agents are gone; whether others still run."""
        with suppress(PruneGPTError, SQLAlchemyError, OSError):
            if self._root.database.exists():
                with turn(self._root), Store.open(self._root, create=False) as store:
                    return recover_agents(self._root, store)
        return False


def save_sweep(root: Root, plan: SweepPlan) -> None:
    """Makes a sweep and its trials known, as `sweep run` does before it starts them."""
    with turn(root), Store.open(root) as store:
        store.save_sweep(plan)


def turn(root: Root) -> FileLock:
    """The right to begin or end what runs without a coordinator; other processes wait for a moment."""
    root.path.mkdir(parents=True, exist_ok=True)
    return FileLock(root.path / ".ingest.lock")
