"""Ctrl-C that does not tear anything: it is counted, and the coordinator looks at the count between its steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """How often somebody asked to stop: once lets running trials write a checkpoint, twice does not wait for them."""

    def __init__(self) -> None:
        self.count = 0

    def request(self) -> None:
        """Asks to stop; from any thread, and from a signal handler."""
        self.count += 1

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask to stop inside the block, where this is the main thread; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(_: int, __: FrameType | None) -> None:
            self.request()

        before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        try:
            for number in _SIGNALS:
                before[number] = signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
