"""Intervals of perplexities, computed once a measurement: now while there is time, the rest behind the page's back."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult
from prunegpt.report.measure import WindowsOf, measure

Bounds = tuple[float, float]
_Key = tuple[str, str]  # of the stage, of the evaluation
_KEPT = 100_000
_SECONDS = 0.15  # that a request computes before it leaves the rest for later
_PAUSE = 0.02  # seconds between two computations behind the page's back, so that requests come first


class Intervals:
    """Low and high ends by measurement.

    Args:
        windows: gives the per-window losses of a trial.
        told: called from another thread with trials whose interval has become known.
    """

    def __init__(self, windows: WindowsOf, told: Callable[[list[int]], None]) -> None:
        self._windows = windows
        self._told = told
        self._known: dict[_Key, Bounds | None] = {}
        self._lock = threading.Lock()
        self._waiting: OrderedDict[_Key, TrialResult] = OrderedDict()
        self._work = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def find(self, trials: Sequence[TrialResult], seconds: float = _SECONDS) -> dict[int, Bounds | None]:
        """Intervals of the trials, those None that are not known or cannot be; the missing ones are computed later.

        Args:
            trials: any.
            seconds: how long to compute before the rest is left for later.
        """
        until = time.monotonic() + seconds
        found: dict[int, Bounds | None] = {}
        for trial in trials:
            key = _key(trial)
            if key is None:
                found[trial.id] = None
            elif key in self._known:
                found[trial.id] = self._known[key]
            elif time.monotonic() < until:
                found[trial.id] = self._compute(key, trial)
            else:
                found[trial.id] = None
                self._later(key, trial)
        return found

    def close(self) -> None:
        self._closed = True
        self._work.set()
        if self._thread is not None:
            self._thread.join()

    def _compute(self, key: _Key, trial: TrialResult) -> Bounds | None:
        try:
            measured = measure([trial], self._windows)
            interval = measured.interval if measured else None
        except ReportError:
            interval = None
        bounds = (interval.low, interval.high) if interval else None
        with self._lock:
            self._known[key] = bounds
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
        return bounds

    def _later(self, key: _Key, trial: TrialResult) -> None:
        with self._lock:
            self._waiting[key] = trial
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="intervals", daemon=True)
                self._thread.start()
        self._work.set()

    def _serve(self) -> None:
        ready: list[int] = []
        told = time.monotonic()
        while not self._closed:
            with self._lock:
                key, trial = self._waiting.popitem(last=False) if self._waiting else (None, None)
            if ready and (key is None or time.monotonic() - told > 1):
                self._told(ready)
                ready, told = [], time.monotonic()
            if key is None or trial is None:
                self._work.wait()
                self._work.clear()
                continue
            bounds = self._known[key] if key in self._known else self._compute(key, trial)
            if bounds is not None:
                ready.append(trial.id)
            time.sleep(_PAUSE)


def _key(trial: TrialResult) -> _Key | None:
    return (trial.stages[-1].key, trial.measured.key) if trial.measured else None
