"""Online runs of any script: what they stream goes into the store, as trials of the sweep wandb-PROJECT."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.tracking.claims import read_claim
from prunegpt.tracking.endpoint.signs import Signs
from prunegpt.tracking.foreign import ForeignRun, Keeper
from prunegpt.tracking.posted import posted

HISTORY, SUMMARY, OUTPUT = "wandb-history.jsonl", "wandb-summary.json", "output.log"
LARGEST_FILE = 20_000_000  # bytes of an uploaded file that is kept
_OPEN_RUNS = 200  # whose files stay open
_SILENT = 600.0  # seconds without a word after which a run is taken to be lost


class Runs:
    """The runs of one server. Its own lock: streams come in many threads."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._store: Store | None = None
        self._keepers: dict[tuple[str, str, str], Keeper] = {}
        self._curves: dict[tuple[str, str, str], dict[str, list[float]]] = {}
        self._ended: dict[tuple[str, str, str], str] = {}
        self._active: dict[tuple[str, str, str], float] = {}
        self._own: dict[tuple[str, str, str], list[int]] = {}  # runs of this root's trials: rows, and the last step
        self._lock = Lock()

    def upsert(
        self,
        entity: str,
        project: str,
        name: str,
        *,
        display: str | None,
        group: str | None,
        config: Mapping[str, Any],
        swept: Mapping[str, Any] | None,
        summary: Mapping[str, Any] | None,
    ) -> bool:
        """A run begins, or says more of itself; whether it is new."""
        with self._lock:
            at = (entity, project, name)
            if self._is_own(at):
                return False
            self._expire()
            new = not self._is_kept(at)
            self._ended.pop(at, None)
            keeper = self._keeper(at)
            own = {key: value for key, value in config.items() if key != "_wandb"}
            run = keeper.run
            changed = replace(
                run,
                name=display or run.name,
                group=group or run.group,
                config={**(run.config or {}), **own},
                swept=swept if swept is not None else run.swept,
            )
            keeper.update(changed, summary)
            self._active[at] = time.time()
            return new

    def stream(self, entity: str, project: str, name: str, body: Mapping[str, Any]) -> None:
        """What a run has streamed."""
        with self._lock:
            at = (entity, project, name)
            files = body.get("files") or {}
            if self._is_own(at):
                self._count(at, files.get(HISTORY))
                return
            keeper = self._keeper(at)
            self._active[at] = time.time()
            self._history(at, keeper, files.get(HISTORY))
            if OUTPUT in files:
                keeper.log(str(line) for line in files[OUTPUT].get("content") or ())
            for line in (files.get(SUMMARY) or {}).get("content") or ():
                keeper.update(keeper.run, _parsed(line))
            if body.get("complete"):
                code = body.get("exitcode")
                state = "finished" if code in (0, None) else "failed"
                keeper.end(
                    "finished" if state == "finished" else "failed", "" if not code else f"it ended with {code}."
                )
                self._ended[at] = state

    def keep_file(self, entity: str, project: str, name: str, path: str, content: bytes) -> None:
        """Keeps an uploaded file beside the run's other ones."""
        with self._lock:
            if self._is_own((entity, project, name)):
                return
            keeper = self._keeper((entity, project, name))
            parts = Path(path).parts
            if parts and ".." not in parts and not Path(path).is_absolute() and len(content) <= LARGEST_FILE:
                file = keeper.folder / "files" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)

    def lines(self, entity: str, project: str, name: str) -> int:
        """Rows of a run's history that are kept."""
        with self._lock:
            at = (entity, project, name)
            return self._own[at][0] if self._is_own(at) else self._keeper(at).lines

    def state(self, entity: str, project: str, name: str) -> dict[str, Any] | None:
        """What a run that goes on wants to know; None where there is no such run."""
        with self._lock:
            if self._is_own((entity, project, name)):
                lines, last = self._own[entity, project, name]
                return _resumed(name, lines, last, {}, {}) if lines else None
            if not self._is_kept((entity, project, name)):
                return None
            kept = self._keeper((entity, project, name))
            shown, config = kept.run.name or name, kept.run.config or {}
            return _resumed(shown, kept.lines, kept.last_step, kept.summary, config)

    def signs(self, entity: str, project: str, name: str, metric: str) -> Signs:
        """Signs of a run that streams to us."""
        with self._lock:
            at = (entity, project, name)
            if at not in self._active:
                return Signs()
            curve = self._curves.get(at, {}).get(metric, [])
            value = self._keepers[at].summary.get(metric) if at in self._keepers else None
            known = value if isinstance(value, (int, float)) and math.isfinite(value) else None
            last = curve[-1] if curve else None
            return Signs(True, self._ended.get(at, ""), list(curve), last if known is None else known, self._active[at])

    def close(self) -> None:
        with self._lock:
            for keeper in self._keepers.values():
                keeper.close()
            if self._store is not None:
                self._store.close()

    def _expire(self) -> None:
        """Ends runs that have fallen silent; one that speaks again goes on."""
        for at, seen in self._active.items():
            if at in self._keepers and at not in self._ended and time.time() - seen > _SILENT:
                self._keepers[at].end("failed", f"it has not been heard of for {_SILENT:g} s.")
                self._ended[at] = "failed"

    def _is_own(self, at: tuple[str, str, str]) -> bool:
        """Whether a run is one of this root's own trials: the store has it already."""
        if at not in self._own and at not in self._keepers:
            run = at[2]
            if posted(self._root, run) is not None or read_claim(self._root, run) is not None:
                self._own[at] = [0, -1]
        return at in self._own

    def _is_kept(self, at: tuple[str, str, str]) -> bool:
        run = ForeignRun(*at)
        return at in self._keepers or self._root.trial(run.sweep, run.trial).exists()

    def _count(self, at: tuple[str, str, str], file: Mapping[str, Any] | None) -> None:
        if file and file.get("content"):
            lines = file["content"]
            count = self._own[at]
            count[0] = max(count[0], int(file.get("offset", 0)) + len(lines))
            count[1] = max(count[1], int(_parsed(lines[-1]).get("_step", -1)))

    def _history(self, at: tuple[str, str, str], keeper: Keeper, file: Mapping[str, Any] | None) -> None:
        if not file:
            return
        rows = [_parsed(line) for line in file.get("content") or ()]
        offset = int(file.get("offset", 0))
        new = rows[max(keeper.lines - offset, 0) :]
        keeper.add(rows, offset)
        curves = self._curves.setdefault(at, {})
        for row in new:
            for name, value in row.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                    curves.setdefault(name, []).append(float(value))

    def _keeper(self, at: tuple[str, str, str]) -> Keeper:
        if at not in self._keepers:
            if len(self._keepers) >= _OPEN_RUNS:
                oldest = min(self._keepers, key=lambda one: self._active.get(one, 0.0))
                self._keepers.pop(oldest).close()
            if self._store is None:
                self._store = Store.open(self._root)
            self._keepers[at] = Keeper(self._root, self._store, ForeignRun(*at, created=time.time()))
        return self._keepers[at]


def _parsed(line: Any) -> dict[str, Any]:
    """A line of JSON as a mapping; anything else is empty."""
    try:
        found = json.loads(line) if isinstance(line, str) else line
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _resumed(
    shown: str, lines: int, last: int, summary: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    tail = [json.dumps({"_step": last})] if lines else []
    return {
        "id": shown,
        "displayName": shown,
        "summaryMetrics": json.dumps(dict(summary)),
        "logLineCount": 0,
        "historyLineCount": lines,
        "eventsLineCount": 0,
        "historyTail": json.dumps(tail),
        "eventsTail": "[]",
        "config": json.dumps({key: {"value": value} for key, value in config.items()}),
        "tags": [],
        "notes": None,
        "wandbConfig": "{}",
    }
