"""Online runs of any script: what they stream goes into the store, as trials of the sweep wandb-PROJECT."""

import errno
import json
import time
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import Field

from prunegpt.root import Root
from prunegpt.spec.read import MAX_INTEGER
from prunegpt.store import Store
from prunegpt.tracking.claims import RunStatus, Statuses, read_claim
from prunegpt.tracking.endpoint.intake import ClientMessage, Rejected, parsed_object
from prunegpt.tracking.foreign import Keeper, RunPath, StoredRun, step_of
from prunegpt.tracking.uploader import posted

HISTORY, SUMMARY, OUTPUT = "wandb-history.jsonl", "wandb-summary.json", "output.log"
LARGEST_FILE = 20_000_000  # bytes of an uploaded file that is kept
UPLOADS = 1_000_000_000  # bytes of all uploaded files of a run
_BLOCK = 4096  # bytes that the smallest file takes
_MOST_RUNS = 10_000  # that are followed at the same time
_SILENT = 600.0  # seconds without a word after which a run is taken to be lost


class Lines(ClientMessage):
    """Lines of one file."""

    offset: int = Field(0, ge=0, le=MAX_INTEGER // 2)  # number of the first, from 0
    content: list[str] | None = None


class Streamed(ClientMessage):
    """What a client streams of a run."""

    files: dict[str, Lines | None] | None = None
    complete: bool | None = None
    exitcode: int | None = None

    def lines(self, name: str) -> tuple[list[str], int]:
        """What is new of a file, and its number."""
        found = (self.files or {}).get(name) or Lines()
        return found.content or [], found.offset


class Runs:
    """The runs of one server. Its own lock: streams come in many threads."""

    def __init__(self, root: Root, uploads: int) -> None:
        self._root = root
        self._uploads = uploads
        self._store: Store | None = None
        self._heard: dict[RunPath, float] = {}  # live runs -> their last heartbeat, the longest silent first
        self._own: dict[RunPath, StoredRun] = {}  # runs of this root's trials, of which only the lines are counted
        self._statuses = Statuses(root)
        self._lock = Lock()

    def upsert(self, at: RunPath, **said: Any) -> bool:
        """A run begins, or says more of itself; whether it is new.

        Args:
            said: as `Keeper.update` takes it.
        """
        with self._lock:
            if self._is_own(at):
                return False
            self._expire()
            new = not self._is_kept(at)
            self._keeper(at).update(**said)
            return new

    def stream(self, at: RunPath, streamed: Streamed) -> None:
        """What a run has streamed: all of it is kept, or nothing.

        Raises:
            Rejected: a line is no JSON object, or no row of a history.
        """
        content, offset = streamed.lines(HISTORY)
        rows = [parsed_object(line, "a row") for line in content]
        told = [parsed_object(line, "a summary") for line in streamed.lines(SUMMARY)[0]]
        try:
            last = max(map(step_of, rows), default=-1)
        except ValueError as error:
            raise Rejected(str(error)) from error
        with self._lock:
            if self._is_own(at):
                own = self._own[at]
                lines = max(own.lines, offset + len(rows)) if rows else own.lines
                self._own[at] = StoredRun(attempt=0, lines=lines, last_step=max(own.last_step, last))
                return
            keeper = self._keeper(at)
            keeper.touch()
            keeper.add(rows, offset)
            keeper.log(*streamed.lines(OUTPUT))
            if told:
                keeper.update(summary=told[-1])
            if streamed.complete:
                code = streamed.exitcode
                keeper.end("failed" if code else "finished", f"it ended with {code}." if code else "")
                self._heard.pop(at, None)

    def keep_file(self, at: RunPath, path: str, content: bytes) -> None:
        """Keeps an uploaded file beside the run's other ones.

        Raises:
            Rejected: its name is none, or there is no room for it on the disk or among the files of the run.
        """
        with self._lock:
            if self._is_own(at) or not is_below(path):
                return
            folder = self._keeper(at).folder / "files"
            file = folder / path
            try:
                taken = sum(_room(other.stat().st_size) for other in folder.rglob("*") if other != file)
                if taken + _room(len(content)) > self._uploads:
                    raise Rejected(
                        f"the files of a run may take {self._uploads} bytes here, but with {path[:80]!r} would take "
                        f"{taken + _room(len(content))}. `prunegpt serve --upload-limit` sets it.",
                        413,
                    )
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            except (OSError, ValueError) as error:
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                reason = error.strerror if isinstance(error, OSError) else error
                raise Rejected(f"{path[:80]!r} cannot be kept: {reason}.", 507 if full else 400) from error

    def lines(self, at: RunPath) -> int:
        """Rows of a run's history that are kept."""
        with self._lock:
            return (self._own[at] if self._is_own(at) else self._opened(at).kept).lines

    def state(self, at: RunPath) -> dict[str, Any] | None:
        """What a resumed run needs to know; None where there is no such run."""
        with self._lock:
            if self._is_own(at):
                kept, label, config = self._own[at], at.id, {}
                if not kept.lines:
                    return None
            elif self._is_kept(at):
                keeper = self._opened(at)
                kept, label, config = keeper.kept, keeper.plan.label, dict(keeper.plan.config)
            else:
                return None
        return {
            "id": label,
            "name": at.id,
            "displayName": label,
            "summaryMetrics": json.dumps(dict(kept.summary)),
            "logLineCount": kept.output,
            "historyLineCount": kept.lines,
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps({"_step": kept.last_step})] if kept.lines else []),
            "eventsTail": "[]",
            "config": json.dumps({key: {"value": value} for key, value in config.items()}),
            "tags": [],
            "notes": None,
            "wandbConfig": "{}",
        }

    def status(self, at: RunPath, metric: str) -> RunStatus:
        """The status of a run: what its claim says where it is one of our trials, else what it has streamed."""
        claimed = self._statuses.claimed(at.id, metric)
        if claimed is not None:
            return claimed
        with self._lock:
            if not self._is_kept(at):
                return RunStatus()
            keeper = self._opened(at)
            return self._statuses.of(keeper.folder, keeper.ended, keeper.kept.summary, metric, keeper.active)

    def close(self) -> None:
        with self._lock:
            if self._store is not None:
                self._store.close()

    def _expire(self) -> None:
        """Ends runs without a heartbeat; one that comes back is resumed."""
        for at, heard in list(self._heard.items()):
            if time.time() - heard <= _SILENT:
                break
            del self._heard[at]
            if self._is_kept(at) and not (keeper := self._opened(at)).ended:
                keeper.end("failed", f"no heartbeat for {_SILENT:g} s.")

    def _is_own(self, at: RunPath) -> bool:
        """Whether a run is one of this root's own trials: the store has it already."""
        if at not in self._own and (posted(self._root, at.id) or read_claim(self._root, at.id)):
            self._own[at] = StoredRun(attempt=0)
            if len(self._own) > _MOST_RUNS:
                del self._own[next(iter(self._own))]
        return at in self._own

    def _is_kept(self, at: RunPath) -> bool:
        return self._root.trial(at.sweep, at.trial).exists()

    def _keeper(self, at: RunPath) -> Keeper:
        """The keeper of a run that has spoken."""
        self._heard.pop(at, None)
        if len(self._heard) >= _MOST_RUNS:
            raise Rejected(f"{_MOST_RUNS} runs may be online at the same time. Try again when one has ended.", 503)
        self._heard[at] = time.time()
        return self._opened(at)

    def _opened(self, at: RunPath) -> Keeper:
        self._store = self._store or Store.open(self._root)
        return Keeper(self._root, self._store, at)


def is_below(path: str) -> bool:
    """Whether a path that a client names stays in the folder that it belongs to."""
    parts = Path(path).parts
    return bool(parts) and ".." not in parts and not Path(path).is_absolute()


def _room(size: int) -> int:
    """Bytes that a file or folder takes on a disk, about."""
    return max(size, _BLOCK)
