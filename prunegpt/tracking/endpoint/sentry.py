"""Looks after attempts that agents run: one whose agent is gone does not stand as running for ever."""

import math
import threading
import time
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from prunegpt.errors import PruneGPTError
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.recovery import recover_agents
from prunegpt.tracking.ingest import turn

_LOOK = 10.0  # seconds between two looks
_LINGER = 120.0  # seconds without attempts and without a word of agents after which nobody looks


class Sentry:
    """A thread that is there as long as agents run attempts under a root, or are about to."""

    def __init__(self, root: Root, every: float = _LOOK, linger: float = _LINGER) -> None:
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
                self._thread = threading.Thread(target=self._watch, name="sentry", daemon=True)
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
        found = False
        if not self._root.database.exists():
            return found
        with (
            suppress(PruneGPTError, SQLAlchemyError, OSError),
            turn(self._root),
            Store.open(self._root, create=False) as store,
        ):
            found = recover_agents(self._root, store)
        return found
