"""A launcher that runs an attempt when it is submitted, in this process: torch does not outlive a fork."""

from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from prunegpt.launch.base import Exited
from prunegpt.trial import run_trial


class Here:
    """Runs one attempt at a time, and tells how it ended."""

    slots = 1

    def __init__(self) -> None:
        self._ends: dict[str, Exited] = {}

    def submit(self, folder: Path) -> str:
        with (folder / "log.txt").open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            failed = run_trial(folder).state == "failed"
        self._ends[str(folder)] = Exited("failed", 1) if failed else Exited("ended", 0)
        return str(folder)

    def poll(self, handle: str) -> Exited:
        return self._ends[handle]

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        pytest.fail(f"{handle} was cancelled")

    def close(self) -> None:
        pass
