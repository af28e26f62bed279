"""A launcher that forks the test process: real processes, real deaths, and no time lost with starting Python."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from prunegpt.errors import LaunchError
from prunegpt.launch.base import Exited


class ForkLauncher:
    def __init__(self, run: Callable[[Path], str], slots: int = 1) -> None:
        self._run = run
        self._slots = slots
        self._running: dict[str, int] = {}
        self._cancelled: set[str] = set()
        self._ended: dict[str, Exited] = {}

    @property
    def slots(self) -> int:
        return self._slots

    def submit(self, folder: Path) -> str:
        if len(self._running) >= self._slots:
            raise LaunchError(f"at most {self._slots} attempts run at a time, and all slots are taken.")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                sys.stdout = sys.stderr = (folder / "log.txt").open("a", buffering=1)
                code = 1 if self._run(folder) == "failed" else 0
            finally:
                os._exit(code)
        self._running[str(pid)] = pid
        return str(pid)

    def poll(self, handle: str) -> Exited | None:
        if handle in self._ended:
            return self._ended[handle]
        if handle not in self._running:
            raise LaunchError(f"a handle must come from this launcher's submit, got {handle!r}.")
        pid, status = os.waitpid(self._running[handle], os.WNOHANG)
        if pid == 0:
            return None
        del self._running[handle]
        code = os.waitstatus_to_exitcode(status)
        reason = "cancelled" if handle in self._cancelled else "signal" if code < 0 else "failed" if code else "ended"
        self._ended[handle] = Exited(reason, None if code < 0 else code, -code if code < 0 else None)
        return self._ended[handle]

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        if handle in self._running:
            self._cancelled.add(handle)
            os.kill(self._running[handle], signal.SIGKILL if kill else signal.SIGTERM)

    def close(self) -> None:
        for pid in self._running.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._running.clear()
