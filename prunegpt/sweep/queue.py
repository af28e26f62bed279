"""Who waits to coordinate a root, and in which order.

An entry is a file that its process keeps locked, as `lock.py` does: with the process it ends, whatever its pid, host or
clock say, and a copy of it is no entry. Whoever removes an entry has it leave the queue.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from prunegpt.errors import LaunchError, StoreError
from prunegpt.root import Root, read_json, write_json
from prunegpt.store import Store, SweepRow
from prunegpt.sweep.events import Queued
from prunegpt.sweep.interrupt import Interrupt
from prunegpt.sweep.lock import Holder, coordinating, coordinator, is_locked, refusal

POLL = 1.0  # seconds between two checks of the queue


@dataclass(frozen=True)
class Waiter:
    """A process that waits to coordinate a root."""

    pid: int
    host: str
    since: float  # seconds since the epoch
    sweep: str
    priority: int  # higher goes first
    number: int  # of arrival; counts from 1 since the queue was last empty


class Ticket:
    """A place in the queue, until it is given back or the process ends."""

    def __init__(self, root: Root, sweep: str, priority: int = 0) -> None:
        """Raises OSError where the root takes no file, or its file system no lock."""
        self._root = root
        folder = _folder(root)
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((waiter.number for waiter, _ in _tidied(root)), default=0)
        self._waiter = Waiter(os.getpid(), socket.gethostname(), time.time(), sweep, priority, number)
        self._file = folder / f"{uuid4().hex}.json"
        hidden = folder / f".{self._file.name}.{uuid4().hex}.tmp"
        write_json(hidden, asdict(self._waiter))
        self._lock = os.open(hidden, os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.rename(self._file)  # locked from the first instant that others see it
        except OSError:
            os.close(self._lock)
            hidden.unlink(missing_ok=True)
            raise

    @property
    def valid(self) -> bool:
        """Whether nobody has taken it out of the queue."""
        return self._file.exists()

    def look(self) -> tuple[list[Waiter], int]:
        """Those that go first, in order; and how many wait in all."""
        mine = _rank(self._waiter, self._file)
        others = [(_rank(waiter, file), waiter) for waiter, file in _tidied(self._root, but=self._file)]
        return [waiter for rank, waiter in sorted(others) if rank < mine], len(others) + 1

    def give_back(self) -> bool:
        """Leaves the queue; False where another process has taken it out before: then the turn is lost."""
        try:
            self._file.unlink()
            return True
        except FileNotFoundError:
            return False
        finally:
            os.close(self._lock)


@contextmanager
def turn(
    root: Root,
    sweep: str,
    priority: int = 0,
    *,
    wait: bool = True,
    interrupt: Interrupt | None = None,
    on_wait: Callable[[Queued], None] = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
    hold: Callable[[Root, str], AbstractContextManager[None]] = coordinating,
) -> Iterator[bool]:
    """Waits until a root is free and nobody goes first, and coordinates it inside the block.

    Args:
        priority: higher goes first; equal ones in the order of their arrival.
        wait: otherwise a root that is not free at once is refused.
        interrupt: hears signals while it waits, and ends the wait.
        on_wait: gets the place in the queue, at first and on every change.
        pause: waits some seconds.
        hold: takes the right to coordinate.

    Yields:
        whether it came; not where it was stopped or taken out of the queue.

    Raises:
        LaunchError: the root is not free, and `wait` is off or the root cannot hold a queue.
    """
    stop = interrupt or Interrupt()
    with ExitStack() as held:
        try:
            ticket = Ticket(root, sweep, priority)
        except OSError:  # a full disk, or a file system without locks
            held.enter_context(hold(root, sweep))
            yield True
            return
        last, came = None, False
        try:
            with stop.on_signals():
                while ticket.valid and not stop.count:
                    ahead, count = ticket.look()
                    runs = coordinator(root)
                    if runs is None and not ahead and _taken(held, hold(root, sweep), wait):
                        came = True
                        break
                    if not wait:
                        raise LaunchError(refusal(root) if runs else _refusal(root, ahead[0]))
                    state = _queued(root, sweep, ahead, count, runs)
                    if state != last:
                        on_wait(state)
                    last = state
                    pause(POLL)
        finally:
            came = ticket.give_back() and came
        if not came:
            held.close()
        yield came


def _taken(held: ExitStack, right: AbstractContextManager[None], wait: bool) -> bool:
    """Enters `right`; where somebody was quicker, such as `gc`, False, or LaunchError without `wait`."""
    try:
        held.enter_context(right)
    except LaunchError:
        if not wait:
            raise
        return False
    return True


def waiting(root: Root) -> list[Waiter]:
    """Who waits, in the order in which they go."""
    return [
        waiter for _, waiter in sorted((_rank(waiter, file), waiter) for waiter, file, lives in _all(root) if lives)
    ]


def stored_sweeps(root: Root, store: Store, name: str | None) -> list[SweepRow]:
    """The stored sweeps of that name, or all; none where it still waits to be run for the first time.

    Raises:
        StoreError: there is no such sweep, and none waits.
    """
    if name is None:
        return store.sweeps()
    try:
        return [store.sweep(name)]
    except StoreError:
        if any(waiter.sweep == name for waiter in waiting(root)):
            return []
        raise


def take_out(root: Root, sweep: str) -> int:
    """Has a sweep leave the queue; how many processes were waiting for it."""
    count = 0
    for waiter, file, lives in _all(root):
        if lives and waiter.sweep == sweep:
            with suppress(FileNotFoundError):
                file.unlink()
                count += 1
    return count


def _folder(root: Root) -> Path:
    return root.path / "control" / "queue"


def _rank(waiter: Waiter, file: Path) -> tuple[int, int, str]:
    return -waiter.priority, waiter.number, file.name


def _all(root: Root) -> Iterator[tuple[Waiter, Path, bool]]:
    """Every entry that can be read, and whether its process lives."""
    with suppress(FileNotFoundError):
        for file in list(_folder(root).iterdir()):
            with suppress(OSError, ValueError, TypeError):
                if file.suffix == ".json":
                    yield Waiter(**read_json(file)), file, is_locked(file)


def _tidied(root: Root, but: Path | None = None) -> list[tuple[Waiter, Path]]:
    """The living entries, but for one's own; the others are removed."""
    found = []
    for waiter, file, lives in _all(root):
        if lives and file != but:
            found.append((waiter, file))
        elif not lives and file != but:
            with suppress(OSError):
                file.unlink()
    return found


def _queued(root: Root, sweep: str, ahead: list[Waiter], count: int, runs: Holder | None) -> Queued:
    """A place in the queue, with how far the sweep is that runs."""
    done = total = 0
    if runs is not None and runs.sweep:
        with suppress(StoreError), Store.open(root, create=False) as store:
            states = store.sweep(runs.sweep).states
            total = sum(states.values())
            done = total - states.get("waiting", 0) - states.get("running", 0)
    who = f"process {runs.pid} on {runs.host}" if runs else ""
    return Queued(
        sweep, len(ahead) + 1, count, tuple(one.sweep for one in ahead), runs.sweep if runs else "", who, done, total
    )


def _refusal(root: Root, first: Waiter) -> str:
    return (
        f"a root takes one coordinator at a time; {first.sweep} waits for {root.path} in process {first.pid} on "
        f"{first.host}. Run without --no-wait to queue behind it, or use another --root."
    )
