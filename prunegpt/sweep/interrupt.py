"""Graceful stopping: stop requests are counted, and the coordinator polls the count."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prunegpt.signals import on_stop_signals

_APART = 1.0  # seconds between two Ctrl-C that a person means as two


class Interrupt:
    """How urgently a stop was requested: 1 lets running trials write a checkpoint, 2 does not wait for them.

    SIGTERM and SIGHUP are 1 however often they come: `timeout`, Slurm, systemd and docker send them to a process and
    to its group, and again when they please. So is Ctrl-C, until a person presses it again well after the first time.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self._clock = clock
        self._pressed: float | None = None  # when Ctrl-C was heard first

    def request(self) -> None:
        """Asks to stop, or when that was asked before, not to wait; from any thread."""
        self.count += 1

    def hear(self, number: int) -> None:
        """A signal has come."""
        now = self._clock()
        again = number == signal.SIGINT and self._pressed is not None and now - self._pressed >= _APART
        self.count = max(self.count, 2 if again else 1)
        if number == signal.SIGINT and self._pressed is None:
            self._pressed = now

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Hears signals inside the block, where this is the main thread; elsewhere nothing changes."""
        with on_stop_signals(self.hear, signal.SIGINT):
            yield
