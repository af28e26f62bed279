"""The rows that a run has logged, whole, one per line of history.jsonl: what curves are made from, and given back."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prunegpt.tracking.values import step_of

HISTORY = "history.jsonl"
EVENTS = "events.jsonl"  # system metrics
_LOGGED = "_logged_step"  # the step that the client gave a row which is kept at another

LoggedRow = Mapping[str, Any]


class RowFile:
    """Rows in a file that grows; what a crash left half written is cut off before the next ones.

    Args:
        size: bytes of the file that count.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size

    def append(self, rows: Sequence[LoggedRow]) -> None:
        """Writes rows behind those that count; they count from then on."""
        if self.path.exists():
            os.truncate(self.path, self.size)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            self.size = file.tell()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            while file.tell() < self.size and (line := file.readline()):
                yield json.loads(line)


def identity(row: LoggedRow) -> bytes:
    """What a row is recognised by when it is sent again: all of it, with the step that its client gave it."""
    step = row.get(_LOGGED, row.get("_step"))
    known = {name: value for name, value in row.items() if name != _LOGGED} | {"_step": step}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode("utf-8", "replace")).digest()[:16]


def unknown(kept: RowFile, rows: Sequence[LoggedRow], last: int) -> list[dict[str, Any]]:
    """The rows that are not kept yet, at steps that grow.

    A row behind whose step others were logged already, such as one of an execution that was cut off and is sent
    after another has resumed the run, comes behind them: nothing is lost, and no step has two rows.

    Args:
        last: the last step that is kept; -1 where there is none.
    """
    known: set[bytes] | None = None
    found: list[dict[str, Any]] = []
    for row in rows:
        step = step_of(row) if "_step" in row else last + 1
        if step <= last:
            if known is None:
                known = {identity(one) for one in (*kept, *found)}
            if identity(row) in known:
                continue
            row = {**row, _LOGGED: step}
            step = last + 1
        last = step
        found.append({**row, "_step": step})
        if known is not None:
            known.add(identity(found[-1]))
    return found


def begins_anew(kept: RowFile, rows: Sequence[LoggedRow], began: float) -> bool:
    """Whether rows that are sent as the first ones of a run are those of another execution than what is kept.

    Rows that were logged before their client spoke of the run are those of an execution that is sent later, as by
    `wandb sync`: they come behind what is kept.

    Args:
        began: when a client last said that it begins the run, seconds since the epoch.
    """
    first = next(iter(kept), None)
    if first is None or not rows or identity(first) == identity(rows[0]):
        return False
    stamp = rows[0].get("_timestamp")
    late = isinstance(stamp, (int, float)) and stamp < began
    return step_of(rows[0]) <= step_of(first) and not late
