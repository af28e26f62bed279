"""One coordinator a root."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from prunegpt.errors import LaunchError
from prunegpt.root import Root, write_json


@dataclass(frozen=True)
class Holder:
    """The process that coordinates a root."""

    pid: int
    host: str
    since: float  # seconds since the epoch
    sweep: str = ""


@contextmanager
def coordinating(root: Root, sweep: str = "") -> Iterator[None]:
    """Holds the right to start trials under a root and to write its database.

    Args:
        sweep: what others are told that runs.

    Raises:
        LaunchError: another process has it; its id and host are named.
    """
    root.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root.path / ".coordinator.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise LaunchError(refusal(root)) from error
    try:
        write_json(_note(root), asdict(Holder(os.getpid(), socket.gethostname(), time.time(), sweep)))
        yield
    finally:
        _note(root).unlink(missing_ok=True)
        lock.release()


def coordinator(root: Root) -> Holder | None:
    """Who coordinates a root now; None where nobody does.

    A coordinator on another host is taken to live as long as its note is there.
    """
    found = _read(root)
    if found is None or (found.host == socket.gethostname() and not lives(found.pid)):
        return None
    return found


def refusal(root: Root) -> str:
    """Why this process may not coordinate."""
    found = _read(root)
    who = "another process"
    if found is not None:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
        what = f", which runs {found.sweep}" if found.sweep else ""
        who = f"process {found.pid} on {found.host}, since {since}{what}"
    return (
        f"a root takes one coordinator at a time, but {root.path} has one already: {who}. "
        f"Wait for it, stop it with Ctrl-C or `prunegpt sweep stop`, or use another --root."
    )


def _note(root: Root) -> Path:
    return root.path / ".coordinator.json"


def _read(root: Root) -> Holder | None:
    try:
        return Holder(**json.loads(_note(root).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def lives(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
