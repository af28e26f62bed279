"""Intervals of perplexities, computed once a measurement: now while there is time, the rest behind the page's back."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

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
        told: called from another thread with a trial whose interval has become known.
    """

    def __init__(self, windows: WindowsOf, told: Callable[[int], None]) -> None:
        self._windows = windows
        self._told = told
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

    def close(self) -> None:
        self._later.shutdown(cancel_futures=True)

    def _compute(self, key: _Key, trial: TrialResult) -> None:
        try:
            measured = measure([trial], self._windows)
            interval = measured.interval if measured else None
        except ReportError:
            interval = None
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[key] = (interval.low, interval.high) if interval else None

    def _compute_later(self, key: _Key, trial: TrialResult) -> None:
        if key not in self._known:
            self._compute(key, trial)
        if self._known.get(key):
            self._told(trial.id)
        self._waiting.discard(key)
        time.sleep(_PAUSE)
