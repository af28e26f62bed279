"""One coordinator a root. A lock says whether there is one; the note beside it only says who."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from prunegpt.errors import LaunchError
from prunegpt.root import Root, read_json, write_json

_PATIENCE = 0.5  # seconds that the lock is tried for: a query for the coordinator holds it for an instant
_TAKEN = (errno.EACCES, errno.EAGAIN)


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
        sweep: the sweep that is shown to others as running.

    Raises:
        LaunchError: another process has it; its id and host are named.
    """
    root.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock(root), timeout=_PATIENCE, poll_interval=_PATIENCE / 20)
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
    """Who coordinates a root now; None where nobody does, whatever a note says that was left behind.

    The lock ends with its process, on this host or another that shares the file system. What its pid or host is called
    now does not matter.
    """
    try:
        if not is_locked(_lock(root)):
            return None
    except OSError:  # on a file system without locks, the note is all there is
        return _read(root)
    return _read(root) or Holder(0, "a host that it has not named", 0.0)


def is_locked(file: Path) -> bool:
    """Whether a process holds a lock on a file; not where the file is not there or cannot be read.

    Raises:
        OSError: its file system has no locks.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return True
    finally:
        os.close(descriptor)


def refusal(root: Root) -> str:
    """Why this process may not coordinate."""
    found = _read(root)
    who = "another process"
    if found is not None:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
        what = f", which runs {found.sweep}" if found.sweep else ""
        who = f"process {found.pid} on {found.host}, since {since}{what}"
    return (
        f"a root takes one coordinator at a time; {root.path} has one already: {who}. Wait for it, stop it with Ctrl-C "
        "or `prunegpt sweep stop`, end that process where it hangs, or use another --root."
    )


def _lock(root: Root) -> Path:
    return root.path / ".coordinator.lock"


def _note(root: Root) -> Path:
    return root.path / ".coordinator.json"


def _read(root: Root) -> Holder | None:
    try:
        return Holder(**read_json(_note(root)))
    except (OSError, ValueError, TypeError):
        return None


def lives(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # none has so large a number
        return False
    except PermissionError:
        return True
    return True
