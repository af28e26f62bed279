"""Points of curves and heartbeats: what a worker writes while it runs, and the coordinator follows."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from prunegpt.records import Record

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what a database's column holds


class Point(Record):
    """One value of one curve."""

    stage: Annotated[int, Field(ge=-(2**31), lt=2**31)]  # position in the chain
    step: Whole  # optimizer steps of that stage
    epoch: float
    name: str  # loss, ce, kd, perplexity, sparsity, sparsity_target, learning_rate, sparsity/TENSOR, system/..., ...
    value: float | None  # None: not finite
    time: float  # seconds since the epoch
    tokens: Whole = 0  # trained on so far in this stage


Emit = Callable[[int, float, str, float, int], None]  # step, epoch, name, value, tokens: a point of this stage, now


class PointWriter:
    """Appends points to points.jsonl, a line each; a reader may follow the file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        if not _ends_a_line(path):
            self._file.write("\n")  # what a crash cut off must not swallow our first point

    def write(self, point: Point) -> None:
        self._file.write(point.model_dump_json() + "\n")

    def close(self) -> None:
        self._file.close()


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def read_points(path: Path, offset: int = 0) -> tuple[list[Point], int]:
    """The points in the whole lines from `offset` bytes on, and the offset after them.

    The start of a line is left until its end is there; a whole line that is no point, such as one cut by a crash and
    closed by the next writer, is passed over.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return list(_parse(data[:end])), offset + end


def _parse(data: bytes) -> Iterator[Point]:
    for line in data.splitlines():
        try:
            yield Point.model_validate_json(line)
        except ValidationError:
            continue


HEARTBEAT = "heartbeat"  # beside an attempt's record.json
_BEAT = 5.0  # seconds between two heartbeats


@contextmanager
def beating(folder: Path, every: float = _BEAT, then: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Rewrites FOLDER/heartbeat while the block lasts, so that a hanging process can be distinguished from a slow one.

    The file stays as it was last written: it says that the attempt has begun.

    Args:
        folder: of the attempt.
        every: seconds from one rewriting to the next.
        then: done after each, in that thread; what it raises is passed over.
    """
    file, over = folder / HEARTBEAT, threading.Event()

    def beat() -> None:
        count = 0
        while True:
            with suppress(OSError):  # a full disk must not end the attempt here
                file.write_text(f"{os.getpid()} {count}\n", encoding="utf-8")
            count += 1
            with suppress(Exception):  # the next heartbeat must come, whatever else fails
                then()
            if over.wait(every):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
