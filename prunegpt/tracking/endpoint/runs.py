"""Online runs of any script: what they stream goes into the store, as trials of the sweep wandb-PROJECT."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.tracking.claims import RunStatus, Statuses, read_claim
from prunegpt.tracking.foreign import Keeper, Kept, RunPath
from prunegpt.tracking.uploader import posted

HISTORY, SUMMARY, OUTPUT = "wandb-history.jsonl", "wandb-summary.json", "output.log"
LARGEST_FILE = 20_000_000  # bytes of an uploaded file that is kept
_OPEN_RUNS = 200  # whose files stay open
_SILENT = 600.0  # seconds without a word after which a run is taken to be lost


class Runs:
    """The runs of one server. Its own lock: streams come in many threads."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._store: Store | None = None
        self._keepers: dict[RunPath, Keeper] = {}  # the one that was used last stands last
        self._own: dict[RunPath, Kept] = {}  # runs of this root's trials, of which only the lines are counted
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

    def stream(self, at: RunPath, body: Mapping[str, Any]) -> None:
        """What a run has streamed."""
        with self._lock:
            files = body.get("files") or {}
            history = files.get(HISTORY) or {}
            rows, offset = [_parsed(line) for line in history.get("content") or ()], int(history.get("offset", 0))
            if self._is_own(at):
                if rows:
                    own, last = self._own[at], int(rows[-1].get("_step", -1))
                    lines = max(own.lines, offset + len(rows))
                    self._own[at] = Kept(attempt=0, lines=lines, last_step=max(own.last_step, last))
                return
            keeper = self._keeper(at)
            keeper.touch()
            keeper.add(rows, offset)
            if OUTPUT in files:
                keeper.log(str(line) for line in files[OUTPUT].get("content") or ())
            for line in (files.get(SUMMARY) or {}).get("content") or ():
                keeper.update(summary=_parsed(line))
            if body.get("complete"):
                code = body.get("exitcode")
                keeper.end("failed" if code else "finished", f"it ended with {code}." if code else "")

    def keep_file(self, at: RunPath, path: str, content: bytes) -> None:
        """Keeps an uploaded file beside the run's other ones."""
        with self._lock:
            if self._is_own(at) or not is_below(path):
                return
            file = self._keeper(at).folder / "files" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def lines(self, at: RunPath) -> int:
        """Rows of a run's history that are kept."""
        with self._lock:
            return (self._own[at] if self._is_own(at) else self._keeper(at).kept).lines

    def state(self, at: RunPath) -> dict[str, Any] | None:
        """What a run that goes on wants to know; None where there is no such run."""
        with self._lock:
            if self._is_own(at):
                kept, label, config = self._own[at], at.id, {}
                if not kept.lines:
                    return None
            elif self._is_kept(at):
                keeper = self._keeper(at)
                kept, label, config = keeper.kept, keeper.plan.label, dict(keeper.plan.config)
            else:
                return None
        return {
            "id": label,
            "name": at.id,
            "displayName": label,
            "summaryMetrics": json.dumps(dict(kept.summary)),
            "logLineCount": 0,
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
            keeper = self._keeper(at)
            return self._statuses.of(keeper.folder, keeper.ended, keeper.kept.summary, metric, keeper.active)

    def close(self) -> None:
        with self._lock:
            for keeper in self._keepers.values():
                keeper.close()
            if self._store is not None:
                self._store.close()

    def _expire(self) -> None:
        """Ends runs that have fallen silent; one that speaks again goes on."""
        for keeper in self._keepers.values():
            if keeper.is_there and time.time() - keeper.active > _SILENT and not keeper.ended:
                keeper.end("failed", f"it has not been heard of for {_SILENT:g} s.")

    def _is_own(self, at: RunPath) -> bool:
        """Whether a run is one of this root's own trials: the store has it already."""
        known = at in self._own or at in self._keepers
        if not known and (posted(self._root, at.id) or read_claim(self._root, at.id)):
            self._own[at] = Kept(attempt=0)
        return at in self._own

    def _is_kept(self, at: RunPath) -> bool:
        return at in self._keepers or self._root.trial(at.sweep, at.trial).exists()

    def _keeper(self, at: RunPath) -> Keeper:
        keeper = self._keepers.pop(at, None)
        if keeper is not None and not keeper.is_there:
            keeper.close()
            keeper = None
        if keeper is None:
            if len(self._keepers) >= _OPEN_RUNS:
                self._keepers.pop(next(iter(self._keepers))).close()
            self._store = self._store or Store.open(self._root)
            keeper = Keeper(self._root, self._store, at)
        self._keepers[at] = keeper
        return keeper


def is_below(path: str) -> bool:
    """Whether a path that a client names stays in the folder that it belongs to."""
    parts = Path(path).parts
    return bool(parts) and ".." not in parts and not Path(path).is_absolute()


def _parsed(line: Any) -> dict[str, Any]:
    """A line of JSON as a mapping; anything else is empty."""
    try:
        found = json.loads(line) if isinstance(line, str) else line
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
