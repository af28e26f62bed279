"""The near end of a warm worker: starts the process, hands it folders, reads its answers, ends it."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from prunegpt.errors import LaunchError
from prunegpt.launch.log import last_lines
from prunegpt.launch.worker import PARENT_VARIABLE

_GOODBYE = 5.0  # seconds that a worker gets to end by itself once its standard input is closed
_STRAY_LINES = 60


class WorkerProcess:
    """One warm worker.

    Args:
        command: what to run; it must speak as `launch.worker` does.
        environment: its whole environment.
        log: file for what it writes outside attempts; truncated.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("wb") as stray:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stray,
                    env={**environment, PARENT_VARIABLE: str(os.getpid())},
                    start_new_session=True,  # Ctrl-C at the terminal is ours to pass on
                )
            except OSError as error:
                raise LaunchError(f"worker {command[0]!r} did not start: {error}.") from error
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self.members: set[int] = set()  # its process and its children, as they were when it ended
        self._unread = b""
        self._code: int | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it lives."""
        if self._code is None:
            self._code = self._process.poll()
            if self._code is not None:
                self._kill_group()  # children that a dead worker has left behind
        return self._code

    def send(self, folder: Path) -> bool:
        """Hands it an attempt; False where it is dead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"folder": str(folder)}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return False
        return True

    def answers(self) -> dict[str, str]:
        """Folder -> state of the attempts it has answered since last asked."""
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._process.stdout.fileno(), 65536):
                self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        found = {}
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a stray line is no answer
                answer = json.loads(line)
                found[str(answer["folder"])] = str(answer["state"])
        return found

    def stray(self) -> str:
        """What it wrote outside attempts, such as why it could not start."""
        return last_lines(self._log, _STRAY_LINES)

    def signal(self, number: int) -> None:
        """SIGTERM goes to the worker alone, which ends its children; SIGKILL to all of them."""
        if self.code is not None:
            return
        if number == signal.SIGKILL:
            self._kill_group()
        else:
            self._process.send_signal(number)

    def end(self, wait: float = _GOODBYE) -> None:
        """Lets it end by itself; kills it after `wait` seconds, and whatever it leaves behind."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait)
        if self._code is None:
            self._kill_group()
        self._code = self._process.wait()

    def _kill_group(self) -> None:
        self.members |= group_of(self.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def group_of(leader: int) -> set[int]:
    """The processes of a process group, as far as the system shows them."""
    found = {leader}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            group = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[2]
            if int(group) == leader:
                found.add(int(stat.parent.name))
    return found
