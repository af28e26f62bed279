"""Runs made elsewhere into the store: from the W&B API, or from the client's own folders.

The client leaves a file run-ID.wandb in each folder (offline-)run-DATE-ID: a log of protocol buffers in LevelDB's log
format (https://github.com/google/leveldb/blob/main/doc/log_format.md) behind a header of seven bytes.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from prunegpt.errors import counted
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.tracking.client import TrackingError
from prunegpt.tracking.foreign import ForeignState, Keeper
from prunegpt.tracking.ingest import turn
from prunegpt.tracking.run_path import RunPath

_ENDED: Mapping[str, ForeignState] = {"finished": "finished", "killed": "stopped"}  # at W&B -> ours; else failed
_IDENTITY = b":W&B"
_HEADER = 7  # bytes, of the file and of each piece alike
_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class NoRun(TrackingError):
    """A file of the client's in which no run has begun: its process ended before it wrote anything."""


@dataclass
class FoundRun:
    """A run to import: its name, its log, and its end."""

    at: RunPath
    label: str = ""
    about: dict[str, Any] = field(default_factory=dict)  # as `Keeper.update` takes it: group, tags, notes, ...
    config: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)  # what the client keeps of itself in the configuration
    created: float = 0.0  # seconds since the epoch
    rows: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)  # system metrics
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None  # of one in a file; none: it never ended
    state: ForeignState = "failed"
    problem: str = "it never ended: its file stops before."


def import_folder(root: Root, folder: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[str]:
    """Takes in every run of a folder of the W&B client; gives SWEEP/TRIAL of each.

    A run in several files, one per resumption, is one trial; a file that was imported before adds nothing.

    Args:
        say: called with a line about every file in which no run has begun.

    Raises:
        TrackingError: there is no run; or, after all others, some file cannot be imported.
    """
    files = run_files(folder)
    if not files:
        raise TrackingError(
            f"{folder} must hold runs of the W&B client, folders such as offline-run-DATE-ID; it holds none."
        )
    empty, refused = 0, []
    for file in files:
        try:
            yield _keep(root, read_run(file))
        except NoRun:
            empty += 1
            say(f"{file} holds no run: its client ended before it wrote anything.")
        except TrackingError as error:
            refused.append(str(error))
    if refused:
        raise TrackingError(f"{len(refused)} of {len(files)} files cannot be imported: {' '.join(refused)}")
    if empty == len(files):
        raise NoRun(f"{folder} must hold runs of the W&B client; it has {counted(empty, 'file')} without one.")


def import_project(root: Root, path: str, api: Any = None) -> Iterator[str]:
    """Takes in every run of ENTITY/PROJECT or of its sweep ENTITY/PROJECT/SWEEP; gives SWEEP/TRIAL of each.

    Args:
        api: a `wandb.Api`; default a new one.

    Raises:
        TrackingError: W&B cannot be reached, or has no such project.
    """
    parts = path.strip("/").split("/")
    if len(parts) not in (2, 3):
        raise TrackingError(f"what is imported must be ENTITY/PROJECT or ENTITY/PROJECT/SWEEP, got {path!r}.")
    entity, project = parts[:2]
    try:
        if api is None:
            import wandb

            api = wandb.Api()
        runs = api.sweep(path).runs if len(parts) == 3 else api.runs(f"{entity}/{project}")
        for run in runs:
            yield _keep(root, _found(RunPath(entity, project, run.id), run))
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"W&B has not given {path}: {error}. Check its name, WANDB_API_KEY and the network."
        ) from error


def _found(at: RunPath, run: Any) -> FoundRun:
    sweep = getattr(run, "sweep", None)
    about = {name: getattr(run, name, None) for name in ("group", "job_type", "notes")}
    return FoundRun(
        at,
        label=run.name or "",
        about={**about, "tags": tuple(getattr(run, "tags", None) or ()), "sweep": sweep.id if sweep else None},
        config={key: value for key, value in dict(run.config).items() if not key.startswith("_")},
        created=_seconds(getattr(run, "created_at", "")),
        rows=[dict(row) for row in run.scan_history()],
        summary=dict(getattr(run.summary, "_json_dict", run.summary)),
        state=_ENDED.get(run.state, "failed"),
        problem="" if run.state == "finished" else f"it is {run.state} at W&B.",
    )


def _keep(root: Root, found: FoundRun) -> str:
    with turn(root), Store.open(root) as store:
        keeper = Keeper(root, store, found.at, found.created)
        try:
            keeper.add(found.rows, keeper.kept.lines)
            keeper.add_events(found.events, keeper.kept.events)
            summary = {**keeper.kept.summary, **found.summary}
            keeper.update(label=found.label, config=found.config, summary=summary, client=found.client, **found.about)
        except ValueError as error:
            raise TrackingError(f"the run {'/'.join(found.at)} cannot be imported: {error}") from error
        keeper.end(found.state, found.problem)
    return f"{keeper.plan.sweep}/{keeper.plan.name}"


def _seconds(stamp: str) -> float:
    try:
        parsed = datetime.fromisoformat(stamp)
    except (ValueError, TypeError):
        return 0.0
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


# -- the client's own files -------------------------------------------------------------------------------------------


def run_files(folder: Path) -> list[Path]:
    """The files of runs in a folder, its own or those of folders inside it, oldest first."""
    found = [
        path
        for pattern in ("run-*.wandb", "*run-*/run-*.wandb", "wandb/*run-*/run-*.wandb")
        for path in folder.glob(pattern)
    ]
    return sorted(set(found), key=lambda path: (path.parent.name.removeprefix("offline-"), path.name))


def read_run(path: Path) -> FoundRun:
    """The run in a file; what a crash has cut off is left out.

    Raises:
        TrackingError: it is no file of the client's.
    """
    record_type = import_module("wandb.proto.wandb_internal_pb2").Record
    unreadable = import_module("google.protobuf.message").DecodeError
    found: FoundRun | None = None
    for data in _records(path):
        record = record_type()
        try:
            record.ParseFromString(data)
        except unreadable:
            continue
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            at = RunPath(run.entity or "local", run.project or "uncategorized", run.run_id)
            found = found or FoundRun(at)
            found.at, found.label = at, run.display_name
            about = {"group": run.run_group, "job_type": run.job_type, "notes": run.notes, "sweep": run.sweep_id}
            found.about = {**about, "tags": tuple(run.tags), "host": run.host}
            found.created = float(run.start_time.seconds)
            _take_config(found, run.config)
        elif found is not None and kind == "history":
            found.rows.append(_items(record.history.item) | {"_step": int(record.history.step.num)})
        elif found is not None and kind == "stats":
            stamp = record.stats.timestamp.seconds + record.stats.timestamp.nanos / 1e9
            found.events.append(
                {f"system.{name}": value for name, value in _items(record.stats.item).items()} | {"_timestamp": stamp}
            )
        elif found is not None and kind == "summary":
            found.summary |= _items(record.summary.update)
        elif found is not None and kind == "config":
            _take_config(found, record.config)
        elif found is not None and kind == "exit":
            code = found.exit_code = int(record.exit.exit_code)
            found.state, found.problem = ("failed", f"it ended with {code}.") if code else ("finished", "")
    if found is None:
        raise NoRun(f"{path} must hold a run of the W&B client; it holds none. Give a folder of offline runs.")
    return found


def _take_config(found: FoundRun, record: Any) -> None:
    """Takes what a record changes in a run's configuration."""
    changed = _items(record.update)
    found.client |= changed.pop("_wandb", None) or {}
    found.config |= changed


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        path = list(getattr(item, "nested_key", ())) or [item.key]  # items of system metrics have none
        node = found
        for step in path[:-1]:
            below = node.setdefault(step, {})
            if not isinstance(below, dict):
                break
            node = below
        try:
            node[path[-1]] = json.loads(item.value_json)
        except ValueError:
            continue
    return found


def _records(path: Path) -> Iterator[bytes]:
    """The records of a log, until the first that is cut off or damaged."""
    data = path.read_bytes()
    if _IDENTITY.startswith(data):
        raise NoRun(f"{path} is empty.")
    if not data.startswith(_IDENTITY):
        raise TrackingError(f"{path} must be a file of the W&B client; it does not begin like one.")
    position, parts = _HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        if (checksum, length, kind) == (0, 0, 0):
            position += left  # padding
            continue
        piece = data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if len(piece) < length or zlib.crc32(bytes([kind]) + piece) & 0xFFFFFFFF != checksum:
            return
        if kind in (_FULL, _FIRST):
            parts = b""
        parts += piece
        if kind in (_FULL, _LAST):
            yield parts
