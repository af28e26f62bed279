"""The store as the dashboard sees it: every trial in memory, and only what has changed is read again."""

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from prunegpt.errors import StoreError, unknown
from prunegpt.memory import without_collector
from prunegpt.records import TrialResult
from prunegpt.root import Root
from prunegpt.store import Store, SweepRow
from prunegpt.store.watch import LastPoint, Marks, Watch
from prunegpt.sweep.lock import Holder, coordinator
from prunegpt.sweep.queue import Waiter, waiting

_AT_MOST_EVERY = 0.2  # seconds between two polls of the database
_MANY = 500  # new trials at once


@dataclass
class Running:
    """A running attempt."""

    attempt: int
    trial: int
    stored: int  # bytes of points.jsonl
    last: dict[tuple[int, str], LastPoint] = field(default_factory=dict)  # (stage, name) -> newest point
    changed: dict[tuple[int, str], int] = field(default_factory=dict)  # -> revision of that


class RootSource:
    """One root, followed. Every change has a revision, a number that only grows while the process lives.

    Args:
        clock: seconds that only grow; the database is polled at most five times per second.
    """

    def __init__(self, root: Root, clock: Callable[[], float] = time.monotonic) -> None:
        self.root = root
        self._clock = clock
        self.session = uuid.uuid4().hex[:12]  # revisions of another session mean nothing here
        self.revision = 0
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._watch: Watch | None = None
        self._looked = -math.inf
        self._marks: Mapping[int, tuple[object, ...]] = {}
        self._trials: dict[int, TrialResult] = {}
        self._changed: dict[int, int] = {}
        self._names: dict[tuple[str, str], int] = {}
        self._sweeps: dict[str, SweepRow] = {}
        self._sweep_changed: dict[str, int] = {}
        self._holder: Holder | None = None
        self._queue: list[Waiter] = []
        self._running: dict[int, Running] = {}
        self._ended: dict[int, Running] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """What is asked inside sees one revision."""
        with self._lock:
            self.refresh()
            yield

    def refresh(self) -> int:
        """Reads what has changed since the last time; gives the revision."""
        with self._lock:
            now = self._clock()
            if now - self._looked >= _AT_MOST_EVERY:
                self._looked = now
                self._look()
            return self.revision

    @property
    def mark(self) -> str:
        """The revision for a page to come back with: SESSION-REVISION."""
        return f"{self.session}-{self.revision}"

    def after(self, mark: str) -> int | None:
        """The revision of a mark; None where it is of another session, or none."""
        session, _, number = mark.partition("-")
        known = session == self.session and number.isdecimal() and int(number) <= self.revision
        return int(number) if known else None

    def close(self) -> None:
        with self._lock:
            if self._watch is not None:
                self._watch.close()
            if self._store is not None:
                self._store.close()
            self._watch = self._store = None

    @property
    def store(self) -> Store:
        """The store; opened when it is first there.

        Raises:
            StoreError: nothing has run under the root yet.
        """
        with self._lock:
            if self._store is None:
                self._store = Store.open(self.root, create=False)
                self._watch = self._store.watch()
            return self._store

    def sweeps(self) -> list[SweepRow]:
        """All sweeps, in the order they were first run; none where nothing has run yet."""
        with self.following():
            return list(self._sweeps.values())

    def sweep(self, name: str) -> SweepRow:
        """Raises StoreError with the nearest names where there is none."""
        with self.following():
            if name not in self._sweeps:
                raise StoreError(unknown("sweep", name, self._sweeps))
            return self._sweeps[name]

    def trials(self, sweep: str) -> list[TrialResult]:
        """The trials of a sweep that it lists, in spec order."""
        with self.following():
            self.sweep(sweep)
            found = [one for one in self._trials.values() if one.sweep == sweep and one.shown]
            return sorted(found, key=lambda one: (one.order, one.id))

    def every_trial(self) -> list[TrialResult]:
        with self.following():
            return list(self._trials.values())

    def trial(self, sweep: str, name: str) -> TrialResult:
        """Raises StoreError with the nearest names where there is none."""
        with self.following():
            self.sweep(sweep)
            found = self._names.get((sweep, name))
            if found is None:
                raise StoreError(unknown(f"trial of {sweep}", name, [one.name for one in self.trials(sweep)]))
            return self._trials[found]

    def changed_trials(self, since: int, sweep: str | None = None) -> list[TrialResult]:
        """Trials that changed after a revision."""
        with self._lock:
            found = [self._trials[trial] for trial, at in self._changed.items() if at > since and trial in self._trials]
            return [one for one in found if sweep is None or one.sweep == sweep]

    def sweep_revision(self, sweep: str) -> int:
        """The revision of the last change of a sweep or one of its trials."""
        with self.following():
            return self._sweep_changed.get(sweep, 0)

    def changed_sweeps(self, since: int) -> list[str]:
        """Sweeps that changed after a revision, gone ones too."""
        with self._lock:
            return [name for name, at in self._sweep_changed.items() if at > since]

    def has(self, sweep: str) -> bool:
        return sweep in self._sweeps

    def touch(self, trial: int | None, sweep: str = "") -> None:
        """Counts a trial or a sweep as changed, because something that is shown of it is now known."""
        with self._lock:
            self.revision += 1
            if trial in self._trials:
                self._changed[trial] = self.revision
            if sweep in self._sweeps:
                self._sweep_changed[sweep] = self.revision

    def running(self, sweep: str | None = None) -> list[Running]:
        """Attempts that run now, and those that have just ended with what they wrote last."""
        with self.following():
            found = [one for one in self._running.values() if one.trial in self._trials]
            return [one for one in found if sweep is None or self._trials[one.trial].sweep == sweep]

    def written(self, since: int, sweep: str | None = None) -> list[tuple[TrialResult, list[LastPoint]]]:
        """Newest points that came after a revision, by trial."""
        with self._lock:
            found = []
            for one in [*self._running.values(), *self._ended.values()]:
                trial = self._trials.get(one.trial)
                if trial is None or (sweep is not None and trial.sweep != sweep):
                    continue
                points = [one.last[key] for key, at in one.changed.items() if at > since]
                if points:
                    found.append((trial, points))
            return found

    def _look(self) -> None:
        if self._store is None:
            if not self.root.database.exists():
                return
            _ = self.store
        assert self._watch is not None
        assert self._store is not None
        marks = self._watch.look()
        if marks is not None:
            with without_collector(lasting=len(marks.trials) - len(self._trials) >= _MANY):
                self._take(marks, self._store)
        self._take_holder(coordinator(self.root), waiting(self.root))

    def _take_holder(self, holder: Holder | None, queue: list[Waiter]) -> None:
        """What the store does not show: a coordinator that came or went is a change of its sweep, the queue of all."""
        if (holder, queue) == (self._holder, self._queue):
            return
        told = [one.sweep for one in (self._holder, holder) if one is not None]
        every = "" in told or queue != self._queue
        self._holder, self._queue = holder, queue
        self.revision += 1
        self._sweep_changed |= dict.fromkeys(self._sweeps if every else told, self.revision)

    def _take(self, marks: Marks, store: Store) -> None:
        new = marks.trials
        stale = [trial for trial, mark in new.items() if self._marks.get(trial) != mark]
        gone = [trial for trial in self._marks if trial not in new]
        revision = self.revision + 1
        different = bool(stale or gone)
        if different:
            touched = {self._trials[trial].sweep for trial in gone if trial in self._trials}
            for trial in gone:
                self._forget(trial)
            for result in store.results_of(stale):
                self._forget(result.id)
                self._trials[result.id] = result
                self._names[result.sweep, result.name] = result.id
                self._changed[result.id] = revision
                touched.add(result.sweep)
            self._marks = new
            self._sweep_changed |= dict.fromkeys(touched, revision)
        rows = {row.name: row for row in store.sweeps()}
        if rows != self._sweeps:
            changed = [name for name in {*rows, *self._sweeps} if rows.get(name) != self._sweeps.get(name)]
            self._sweep_changed |= dict.fromkeys(changed, revision)
            self._sweeps = rows
            different = True
        different |= self._take_points(marks.running, store, revision)
        if different:
            self.revision = revision

    def _forget(self, trial: int) -> None:
        old = self._trials.pop(trial, None)
        self._changed.pop(trial, None)
        if old is not None and self._names.get((old.sweep, old.name)) == trial:
            del self._names[old.sweep, old.name]

    def _take_points(self, running: Mapping[int, tuple[int, int]], store: Store, revision: int) -> bool:
        known = {attempt: one.stored for attempt, one in self._running.items()}
        fresh = [attempt for attempt, (_, stored) in running.items() if not stored or known.get(attempt) != stored]
        ended = [attempt for attempt in self._running if attempt not in running]
        if not fresh and not ended:
            return False
        different = bool(ended)
        for attempt in fresh:
            trial, stored = running[attempt]
            different |= attempt not in self._running
            self._running.setdefault(attempt, Running(attempt, trial, stored)).stored = stored
        for point in store.last_points([*fresh, *ended]):
            one = self._running[point.attempt]
            key = (point.stage, point.name)
            if one.last.get(key) != point:
                one.last[key] = point
                one.changed[key] = revision
                different = True
        self._ended = {attempt: self._running.pop(attempt) for attempt in ended} or self._ended
        return different
