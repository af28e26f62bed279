"""Signals that ask a process to end in good order."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_stop_signals(hear: Callable[[int], None], *more: signal.Signals) -> Iterator[None]:
    """SIGTERM, SIGHUP and `more` call `hear` inside the block, where this is the main thread.

    SIGHUP stays ignored where it is, as under nohup. With it the terminal is gone, so what is printed from then on goes
    nowhere instead of failing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = [descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)]

    def handle(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in terminals:
                os.dup2(nowhere, descriptor)
            os.close(nowhere)
        hear(number)

    numbers = (signal.SIGTERM, signal.SIGHUP, *more)
    before = {number: signal.getsignal(number) for number in numbers}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not one of Python's
