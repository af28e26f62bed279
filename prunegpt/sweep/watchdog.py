"""Attempts without a heartbeat, and attempts that run too long."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prunegpt.points import HEARTBEAT
from prunegpt.spec.execution import FailureSpec
from prunegpt.sweep.failures import Ending

STARTS = 5  # times the heartbeat: an attempt may import for long from a disk that is slow


@dataclass
class _Life:
    begun: float  # when it was first seen to run
    beat: str  # what its heartbeat file held last
    changed: float  # when that was new


class Watchdog:
    """Looks at heartbeats by a clock of its own, so that clocks of other machines do not matter.

    An attempt has begun when its heartbeat file is there. Before that it may wait in a scheduler's queue, however long;
    where there is no queue, it must begin within five times what it may be silent for.

    Args:
        policy: how long an attempt may be silent, and how long it may run.
        queues: whether attempts may wait in a queue.
        clock: seconds that only grow.
    """

    def __init__(
        self, policy: FailureSpec, clock: Callable[[], float] = time.monotonic, *, queues: bool = True
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._starts = math.inf if queues else STARTS * policy.heartbeat
        self._waiting: dict[Path, float] = {}  # since when an attempt has not begun
        self._lives: dict[Path, _Life] = {}
        self._looked = clock()

    def look(self, folders: list[Path]) -> dict[Path, Ending]:
        """The attempts that are to be ended now, and why. Ask often."""
        now = self._clock()
        asleep = now - self._looked > self._policy.heartbeat  # we were stopped ourselves, and they perhaps with us
        self._looked = now
        self._lives = {folder: life for folder, life in self._lives.items() if folder in folders}
        self._waiting = {folder: since for folder, since in self._waiting.items() if folder in folders}
        found = {}
        for folder in folders:
            ending = self._look(folder, now, asleep)
            if ending is not None:
                found[folder] = ending
        return found

    def _look(self, folder: Path, now: float, asleep: bool) -> Ending | None:
        try:
            beat = (folder / HEARTBEAT).read_text(encoding="utf-8")
        except OSError:
            return self._look_at_waiting(folder, now, asleep)
        life = self._lives.setdefault(folder, _Life(now, beat, now))
        if beat != life.beat or asleep:
            life.beat, life.changed = beat, now
        limit = self._policy.time_limit
        if limit is not None and now - life.begun > limit:
            message = f"it ran for longer than its time limit of {limit:g} s, and was asked to write a checkpoint."
            return Ending("time-limit", message, "failed")
        if now - life.changed > self._policy.heartbeat:
            message = f"it sent no heartbeat for {self._policy.heartbeat:g} s, and was killed."
            return Ending("lost", message, "failed")
        return None

    def _look_at_waiting(self, folder: Path, now: float, asleep: bool) -> Ending | None:
        since = self._waiting.setdefault(folder, now)
        if folder in self._lives:
            return None  # its heartbeat could not be read just now
        if asleep:
            self._waiting[folder] = now
        elif now - since > self._starts:
            return Ending("lost", f"it sent no first heartbeat within {self._starts:g} s, and was killed.", "failed")
        return None
