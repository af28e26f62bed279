"""Waiting for another process or thread: by what it does, never for a length of time."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

PATIENCE = 120.0  # seconds after which a test has failed; long, as machines are shared
FIRST, LONGEST = 0.005, 0.1  # seconds between two looks, more from one to the next

Found = TypeVar("Found")


class Clock:
    """Seconds that pass when a test says so; for parameters that are `time.monotonic` otherwise."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def until(ready: Callable[[], Found], what: str = "it", *, seconds: float = PATIENCE) -> Found:
    """What `ready` gives once that is true; the test fails where it never becomes true.

    Args:
        ready: is asked again and again.
        what: is waited for, in the failure's message.
        seconds: until the test fails.
    """
    end, pause = time.monotonic() + seconds, FIRST
    while not (found := ready()):
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come within {seconds:g} s")
        time.sleep(pause)
        pause = min(1.3 * pause, LONGEST)
    return found


def written(path: Path) -> str:
    """The text of a file that another process writes, once there is some."""
    return until(lambda: path.exists() and path.read_text(encoding="utf-8"), str(path)) or ""


def lives(pid: int) -> bool:
    """Whether a process runs; one that waits to be collected has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid: int) -> None:
    """Waits until a process has ended."""
    until(lambda: not lives(pid), f"the end of process {pid}")
