"""What every request is answered from."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult
from prunegpt.report.fields import TrialFields
from prunegpt.report.measure import WindowsOf, measure, stored_windows
from prunegpt.root import Root
from prunegpt.store.curves import Summaries
from prunegpt.sweep.control import Action, request
from prunegpt.sweep.lock import coordinator
from prunegpt.sweep.recovery import is_outside
from prunegpt.tracking.endpoint.artifacts import Artifacts
from prunegpt.web.source import RootSource

T = TypeVar("T")
_MOST_KEPT = 64
Bounds = tuple[float, float]
_Key = tuple[str, str]  # of the stage, of the evaluation
_MOST_INTERVALS = 100_000
_SECONDS = 0.15  # that a request computes before it leaves the rest for later
_PAUSE = 0.02  # seconds between two computations behind the page's back, so that requests come first


class Cache:
    """The last results of costly functions, until what they were made from changes; made once though several ask."""

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, tuple[Hashable, object]] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, name: Hashable, state: Hashable, make: Callable[[], T]) -> T:
        """The result of that name for that state of its sources; made where it is of another state."""
        with self._lock:
            lock = self._making.setdefault(name, threading.Lock())
        with lock:
            with self._lock:
                known = self._found.get(name)
            if known is not None and known[0] == state:
                return cast(T, known[1])
            made = make()
            with self._lock:
                self._found[name] = (state, made)
                self._found.move_to_end(name)
                while len(self._found) > _MOST_KEPT:
                    dropped, _ = self._found.popitem(last=False)
                    self._making.pop(dropped, None)
            return made


class Intervals:
    """Low and high ends by measurement.

    Args:
        windows: gives the per-window losses of a trial.
        notify: called from another thread with a trial whose interval has been computed.
    """

    def __init__(self, windows: WindowsOf, notify: Callable[[int], None]) -> None:
        self._windows = windows
        self._notify = notify
        self._known: dict[_Key, Bounds | None] = {}
        self._waiting: set[_Key] = set()
        self._later = ThreadPoolExecutor(1, "intervals")

    def find(self, trials: Sequence[TrialResult], seconds: float = _SECONDS) -> dict[int, Bounds | None]:
        """Intervals of the trials, None where there is none; what is not computed in these seconds is so later."""
        until = time.monotonic() + seconds
        found: dict[int, Bounds | None] = {}
        for trial in trials:
            key = (trial.stages[-1].key, trial.measured.key) if trial.measured else None
            if key is not None and key not in self._known and time.monotonic() < until:
                self._compute(key, trial)
            found[trial.id] = self._known.get(key) if key else None
            if key is not None and key not in self._known and key not in self._waiting:
                self._waiting.add(key)
                self._later.submit(self._compute_later, key, trial)
        return found

    def known(self, trial: TrialResult) -> Bounds | None:
        """The interval of a trial, where it has been computed."""
        return self._known.get((trial.stages[-1].key, trial.measured.key)) if trial.measured else None

    def close(self) -> None:
        self._later.shutdown(cancel_futures=True)

    def _compute(self, key: _Key, trial: TrialResult) -> None:
        try:
            measured = measure([trial], self._windows)
            interval = measured.interval if measured else None
        except ReportError:
            interval = None
        if len(self._known) >= _MOST_INTERVALS:
            self._known.clear()
        self._known[key] = (interval.low, interval.high) if interval else None

    def _compute_later(self, key: _Key, trial: TrialResult) -> None:
        if key not in self._known:
            self._compute(key, trial)
        if self._known.get(key):
            self._notify(trial.id)
        self._waiting.discard(key)
        time.sleep(_PAUSE)


@dataclass(frozen=True)
class PendingRequest:
    """An action that was requested: of the coordinator that began then, while a trial was in that state."""

    action: str
    since: float
    state: str


@dataclass(frozen=True)
class Dashboard:
    """One root, its store as it is followed, and what was made of it."""

    root: Root
    source: RootSource
    intervals: Intervals
    kept: Cache
    artifacts: Artifacts
    budgets: dict[str, int | None] = field(default_factory=dict)  # stage key -> tokens it trains on, once counted

    requests: dict[tuple[str, str], PendingRequest] = field(
        default_factory=dict
    )  # (sweep, trial or "") -> what was asked of it
    configs: dict[int, tuple[TrialResult, Mapping[str, Any]]] = field(default_factory=dict)  # see `TrialFields`

    def asked(self, sweep: str, trial: str = "") -> str:
        """The action that was requested of a sweep or trial here, until it happened; empty where none is pending."""
        found = self.requests.get((sweep, trial))
        if found is None:
            return ""
        holder = coordinator(self.root)
        if (
            holder is None
            or holder.since != found.since
            or (trial and self.source.trial(sweep, trial).state != found.state)
        ):
            self.requests.pop((sweep, trial), None)
            return ""
        return found.action

    def runs(self, trial: TrialResult) -> bool:
        """Whether a running trial has somebody who runs it: the root's coordinator, an agent, or a foreign script."""
        if trial.state != "running":
            return False
        holder = coordinator(self.root)
        ours = holder is not None and holder.sweep in ("", trial.sweep)
        return ours or trial.plan.foreign or is_outside(self.root.path / trial.folder)

    def ask(self, action: Action) -> bool:
        """Requests something of the coordinator, and shows everybody that it is pending; whether anything is.

        Nothing is where a sweep only had to leave the queue.

        Raises:
            LaunchError: nobody coordinates the root.
        """
        holder = coordinator(self.root)
        wish = request(self.root, action)
        found = self.source.trial(action.sweep, action.trial) if action.trial else None
        if holder is not None and wish is not None:
            pending = PendingRequest(action.kind.partition("-")[0], holder.since, found.state if found else "")
            self.requests[action.sweep, action.trial or ""] = pending
        self.source.touch(found.id if found else None, action.sweep)
        return wish is not None

    def fields(self, sweep: str) -> TrialFields:
        """What is known of the trials of a sweep, made once for each state of the store."""
        with self.source.following():
            trials, revision = self.source.trials(sweep), self.source.sweep_revision(sweep)
        return self.kept.get(
            ("fields", sweep),
            revision,
            lambda: TrialFields(
                trials,
                notes=self.source.store.notes(),
                interval=self.intervals.known,
                curves=lambda: self.summaries(sweep),
                configs=self.configs,
            ),
        )

    def summaries(self, sweep: str) -> Summaries:
        """What the curves of a sweep's trials come to, with what its running trials have written since."""
        with self.source.following():
            running = self.source.running(sweep)
            revision = self.source.revision if running else self.source.sweep_revision(sweep)
        return self.kept.get(("curves", sweep), revision, lambda: Summaries(self.source.store, sweep))

    @classmethod
    def open(cls, root: Root, artifacts: Artifacts | None = None) -> "Dashboard":
        source = RootSource(root)
        intervals = Intervals(stored_windows(root), source.touch)
        return cls(root, source, intervals, Cache(), artifacts or Artifacts(root))

    def close(self) -> None:
        self.intervals.close()
        self.source.close()
