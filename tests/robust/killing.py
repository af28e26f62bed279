"""A coordinator in a forked process that can be killed at each point where it touches the world.

A point is counted just before the coordinator commits to a database; opens a file to write it, syncs, renames or
removes one; makes or removes a folder; submits, polls or cancels an attempt; or tells what happens. What it does
between two points only it knows of, so killing it at every point goes through every state that it can leave behind.

Nothing of this is in the package: audit hooks and listeners are set in the forked process, and end with it. Nothing is
synced to the disk there, for what a killed process has written is there without. Workers stand still while the
coordinator works, and make one step at each poll, so that a run has the same points every time.
"""

import hashlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Pool, event

from prunegpt.launch.base import Exited
from prunegpt.root import Root
from prunegpt.spec.plan import StagePlan
from prunegpt.sweep import coordinator
from tests.support import fake_worker

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PATHS = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.truncate": 1}


class Points:
    """Counts the points of this process, and kills it at one of them.

    Args:
        root: files elsewhere are not counted.
        at: the point to die at, from 0; None counts only.
    """

    def __init__(self, root: Path, at: int | None) -> None:
        self._root = str(root)
        self._at = at
        self._pid = os.getpid()
        self.seen: list[str] = []
        os.fsync = lambda descriptor: self.reach(f"fsync {_name(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        sys.addaudithook(self._audit)
        event.listen(Engine, "commit", lambda connection: self.reach(f"commit {_name(connection.engine.url.database)}"))
        event.listen(Pool, "checkout", lambda connection, *_: connection.execute("PRAGMA synchronous=OFF"))

    def reach(self, what: str) -> None:
        if os.getpid() != self._pid:
            return  # a worker, forked from the coordinator
        if len(self.seen) == self._at:
            os.kill(self._pid, signal.SIGKILL)
        self.seen.append(what)

    def _audit(self, name: str, given: tuple[Any, ...]) -> None:
        if name == "open":
            path, _, flags = given
            if isinstance(path, (str, bytes)) and flags & _WRITING and os.fsdecode(path).startswith(self._root):
                self.reach(f"open {_name(path)}")
        elif name in _PATHS:
            paths = [os.fsdecode(path) for path in given[: _PATHS[name]] if isinstance(path, (str, bytes, Path))]
            if any(path.startswith(self._root) or not os.path.isabs(path) for path in paths):
                self.reach(f"{name} {_name(paths[-1])}")


def _name(path: str | bytes) -> str:
    """Without its folder, and without what is drawn by lot."""
    return re.sub("[0-9a-f]{32}", "RANDOM", os.path.basename(os.fsdecode(path)))


class _Worker(fake_worker.Fake):
    """The fake worker with a gate after each thing that it does; its figures tell one stage from another."""

    def __init__(self, folder: Path, gate: Callable[[], None]) -> None:
        super().__init__(folder)
        self._gate = gate

    def stage(self, index: int, stage: StagePlan) -> Any:
        record = super().stage(index, stage)
        self._gate()
        return record

    def compute(self, index: int, stage: StagePlan) -> None:
        super().compute(index, stage)
        self._gate()

    def point(self, stage: int, step: int, name: str, value: float) -> None:
        super().point(stage, step, name, value)
        self._gate()

    def figures(self, stage: StagePlan) -> tuple[float, float]:
        loss = int(hashlib.sha256(stage.key.encode()).hexdigest()[:8], 16) / 2**32
        return 1 + loss, loss


class SteppedLauncher:
    """Forks workers that go on to their next gate at each poll, and end with the coordinator as local ones do."""

    queues = True  # nobody's silence is timed

    def __init__(self, slots: int, reach: Callable[[str], None]) -> None:
        self._slots = slots
        self._reach = reach
        self._running: dict[
            str, tuple[int, int, int]
        ] = {}  # pid, and the pipes to let it go on and to hear of its gates
        self._ended: dict[str, Exited] = {}

    @property
    def slots(self) -> int:
        return self._slots

    def submit(self, folder: Path) -> str:
        self._reach("submit")
        heard, go = os.pipe()
        at, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            for others in self._running.values():
                os.close(others[1])
                os.close(others[2])
            os.close(go)
            os.close(at)
            _work(folder, heard, tell)
        os.close(heard)
        os.close(tell)
        self._running[str(pid)] = (pid, go, at)
        os.read(at, 1)
        return str(pid)

    def poll(self, handle: str) -> Exited | None:
        if handle in self._ended:
            return self._ended[handle]
        pid, go, at = self._running[handle]
        self._reach("poll")
        os.write(go, b".")
        if os.read(at, 1):
            return None
        os.close(go)
        os.close(at)
        del self._running[handle]
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        reason = "signal" if code < 0 else "failed" if code else "ended"
        self._ended[handle] = Exited(reason, None if code < 0 else code, -code if code < 0 else None)
        return self._ended[handle]

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        if handle in self._running:
            self._reach("cancel")
            os.kill(self._running[handle][0], signal.SIGKILL if kill else signal.SIGTERM)

    def close(self) -> None:
        for pid, go, at in self._running.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(go)
            os.close(at)
        self._running.clear()


def _work(folder: Path, heard: int, tell: int) -> None:
    """The process of a worker; does not return."""

    def gate() -> None:
        os.write(tell, b".")
        if not os.read(heard, 1):
            os._exit(9)  # the coordinator is dead

    code = 1
    try:
        sys.stdout = sys.stderr = (folder / "log.txt").open("a", buffering=1)
        fake_worker.STOP[0] = False
        signal.signal(signal.SIGTERM, lambda *_: fake_worker.STOP.__setitem__(0, True))
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        gate()
        state = _Worker(folder, gate).run()
        gate()
        code = 1 if state == "failed" else 0
    except BrokenPipeError:
        code = 9
    finally:
        os._exit(code)


def listener(reach: Callable[[str], None]) -> Callable[[object], None]:
    """Hears of everything, and says it to nobody."""
    return lambda event: reach(f"tell {type(event).__name__}")


def coordinate(root: Root, run: Callable[[Root, Points], None], at: int | None = None) -> list[str] | None:
    """Runs a coordinator in a process of its own until it ends or is killed, and waits until its workers are gone.

    Args:
        run: the coordinator, in the forked process.
        at: the point to kill it at.

    Returns:
        The points that it came through, where it came to its end.
    """
    answer, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(answer)
            coordinator.FOLLOW = coordinator.POLL = 0.0
            points = Points(root.path, at)
            run(root, points)
            text = "\n".join(points.seen)
            code = 0
        except BaseException:
            text = traceback.format_exc()
        finally:
            with os.fdopen(say, "w") as file:
                file.write(text)
            os._exit(code)
    os.close(say)
    with os.fdopen(answer) as file:
        text = file.read()  # ends when the last of them has gone
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == -signal.SIGKILL:
        return None
    assert code == 0, text
    return text.splitlines()
