"""Online runs of any script: what they stream goes into the store, as trials of the sweep wandb-PROJECT."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import RLock
from typing import Any

from pydantic import Field

from prunegpt.root import Root
from prunegpt.spec.read import MAX_INTEGER
from prunegpt.store import Store
from prunegpt.tracking.claims import RunStatus, Statuses, read_claim
from prunegpt.tracking.endpoint.intake import ClientMessage, Rejected, parsed_object
from prunegpt.tracking.foreign import Keeper, StoredRun
from prunegpt.tracking.run_path import Place, RunPath, place_of
from prunegpt.tracking.uploader import posted
from prunegpt.tracking.values import step_of

HISTORY, EVENTS, SUMMARY, OUTPUT = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log"
UPLOADS = 1_000_000_000  # bytes of all uploaded files of a run
_BLOCK = 4096  # bytes that the smallest file takes
_MOST_RUNS = 10_000  # runs of trials of ours of which the lines are counted


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
    """The runs of one server. Its own lock: streams come in many threads.

    Args:
        uploads: bytes that the uploaded files of one run may take.
        begun: called when a run speaks, which from then on may fall silent.
    """

    def __init__(self, root: Root, uploads: int, begun: Callable[[], None] = lambda: None) -> None:
        self._root = root
        self._uploads = uploads
        self._begun = begun
        self._store: Store | None = None
        self._own: dict[RunPath, StoredRun] = {}  # runs of this root's trials, of which only the lines are counted
        self._statuses = Statuses(root)
        self._lock = RLock()

    def upsert(self, at: RunPath, **said: Any) -> bool:
        """A run begins, or says more of itself; whether it is new.

        Args:
            said: as `Keeper.update` takes it.
        """
        with self._lock:
            if self._is_own(at):
                place_of(self._root, at, claim=True)  # its project is known from then on
                return False
            new = not self.is_kept(at)
            self._opened(at).update(**said)
        self._begun()
        return new

    def stream(self, at: RunPath, streamed: Streamed) -> None:
        """What a run has streamed: all of it is kept, or nothing.

        Raises:
            Rejected: a line is no JSON object, or no row of a history.
        """
        content, offset = streamed.lines(HISTORY)
        rows = [parsed_object(line, "a row") for line in content]
        measured, number = streamed.lines(EVENTS)
        events = [parsed_object(line, "a row of system metrics") for line in measured]
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
            keeper = self._opened(at)
            if not streamed.complete:
                keeper.touch()
            keeper.add(rows, offset)
            keeper.add_events(events, number)
            keeper.log(*streamed.lines(OUTPUT))
            if told:
                keeper.update(summary=told[-1])
            if streamed.complete:
                code = streamed.exitcode
                keeper.end("failed" if code else "finished", f"it ended with {code}." if code else "")

    def keep_file(self, at: RunPath, path: str, content: Path) -> None:
        """Keeps an uploaded file beside the run's other ones.

        Args:
            content: a file that is moved there.

        Raises:
            Rejected: its name is none, or there is no room for it on the disk or among the files of the run.
        """
        with self._lock:
            if not is_below(path):
                raise Rejected(f"a file must be below the run's folder, got {path!r:.80}.")
            if self._is_own(at):
                return
            folder = self._opened(at).folder / "files"
            file = folder / path
            try:
                taken = sum(_room(other.stat().st_size) for other in folder.rglob("*") if other != file)
                size = content.stat().st_size
                if taken + _room(size) > self._uploads:
                    raise Rejected(
                        f"the files of a run may take {self._uploads} bytes here; with {path[:80]!r} would take "
                        f"{taken + _room(size)}. `prunegpt serve --upload-limit` sets it.",
                        413,
                    )
                file.parent.mkdir(parents=True, exist_ok=True)
                os.replace(content, file)
            except (OSError, ValueError) as error:
                raise not_kept(path, error) from error

    def lines(self, at: RunPath) -> int:
        """Rows of a run's history that are kept."""
        with self._lock:
            return (self._own[at] if self._is_own(at) else self._opened(at).kept).lines

    def about(self, at: RunPath) -> Keeper | None:
        """What is kept of a run that is no trial of this root; None where there is none."""
        with self._lock:
            return self._opened(at) if not self._is_own(at) and self.is_kept(at) else None

    def state(self, at: RunPath) -> dict[str, Any] | None:
        """What a resumed run needs to know; None where there is no such run."""
        with self._lock:
            if self._is_own(at):
                kept, plan = self._own[at], None
                if not kept.lines:
                    return None
            elif self.is_kept(at):
                keeper = self._opened(at)
                kept, plan = keeper.kept, keeper.plan
            else:
                return None
        client = dict(kept.client) or {"t": {}}  # without its key `t` a client takes the run for one that never began
        config = {key: {"value": value} for key, value in (plan.config if plan else {}).items()}
        run = plan.run if plan else None
        tail = [json.dumps({"_step": kept.last_step, "_runtime": _runtime(kept)})] if kept.lines else []
        return {
            "summaryMetrics": json.dumps(dict(kept.summary)),
            "displayName": plan.label if plan else at.id,
            "logLineCount": kept.output,
            "historyLineCount": kept.lines,
            "eventsLineCount": kept.events,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": json.dumps(config | {"_wandb": {"value": client}}),
            "tags": list(run.tags) if run else [],
            "notes": run.notes if run else None,
            "wandbConfig": of_client(client),
        }

    def ask_to_stop(self, at: RunPath) -> bool:
        """Asks a run to end; whether there is such a run."""
        with self._lock:
            if not self.is_kept(at):
                return False
            self._opened(at).ask_to_stop()
            return True

    def alert(self, at: RunPath, title: str, text: str, level: str) -> None:
        """Writes an alert of a run into its log."""
        with self._lock:
            if not self._is_own(at):
                self._opened(at).note(f"alert ({level.lower()}): {title}: {text}")

    def note(self, at: RunPath, line: str) -> None:
        """Adds a line to the log of a run, where there is one."""
        if keeper := self.about(at):
            keeper.note(line)

    def status(self, at: RunPath, metric: str) -> RunStatus:
        """The status of a run: what its claim says where it is one of our trials, else what it has streamed."""
        claimed = self._statuses.claimed(at.id, metric)
        if claimed is not None:
            return claimed
        with self._lock:
            if not self.is_kept(at):
                return RunStatus()
            keeper = self._opened(at)
            return self._statuses.of(keeper.folder, keeper.ended, keeper.kept.summary, metric, keeper.active)

    @property
    def store(self) -> Store:
        """The database."""
        with self._lock:
            self._store = self._store or Store.open(self._root)
            return self._store

    def close(self) -> None:
        with self._lock:
            if self._store is not None:
                self._store.close()

    def is_kept(self, at: RunPath) -> bool:
        """Whether there is such a run."""
        return self._root.trial(*self.place(at)).exists()

    def place(self, at: RunPath) -> Place:
        """Where a run is."""
        return place_of(self._root, at)

    def _is_own(self, at: RunPath) -> bool:
        """Whether a run is one of this root's own trials: the store has it already."""
        if at not in self._own and (posted(self._root, at.id) or read_claim(self._root, at.id)):
            self._own[at] = StoredRun(attempt=0)
            if len(self._own) > _MOST_RUNS:
                del self._own[next(iter(self._own))]
        return at in self._own

    def _opened(self, at: RunPath) -> Keeper:
        return Keeper(self._root, self.store, at)


def of_client(kept: Mapping[str, Any]) -> Callable[..., str]:
    """The field that gives what a client keeps of itself, or some keys of it."""
    return lambda _, keys=None: json.dumps({name: kept[name] for name in kept if keys is None or name in keys})


def is_below(path: str) -> bool:
    """Whether a path that a client names stays in the folder that it belongs to."""
    parts = Path(path).parts
    return bool(parts) and ".." not in parts and not Path(path).is_absolute()


def not_kept(path: str, error: Exception) -> Rejected:
    """Why a file cannot be kept, as an answer."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = error.strerror if isinstance(error, OSError) else error
    return Rejected(f"{path[:80]!r} cannot be kept: {reason}.", 507 if full else 400)


def _runtime(kept: StoredRun) -> float:
    found = kept.summary.get("_runtime", 0)
    return found if isinstance(found, (int, float)) else 0.0


def _room(size: int) -> int:
    """Bytes that a file or folder takes on a disk, about."""
    return max(size, _BLOCK)
