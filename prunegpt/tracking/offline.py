"""Reads what the W&B client leaves of a run on disk: run-ID.wandb, in a folder (offline-)run-DATE-ID.

The file is a log of protocol buffers in LevelDB's log format (https://github.com/google/leveldb/blob/main/doc/log_format.md)
behind a header of seven bytes.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from prunegpt.tracking.client import TrackingError
from prunegpt.tracking.foreign import ForeignRun

_IDENTITY = b":W&B"
_HEADER = 7  # bytes, of the file and of each piece alike
_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """A run as its file tells it."""

    run: ForeignRun
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None  # none: it never ended


def run_files(folder: Path) -> list[Path]:
    """The files of runs in a folder, its own or those of folders inside it, oldest first."""
    found = [
        path
        for pattern in ("run-*.wandb", "*run-*/run-*.wandb", "wandb/*run-*/run-*.wandb")
        for path in folder.glob(pattern)
    ]
    return sorted(set(found), key=lambda path: (path.parent.name.removeprefix("offline-"), path.name))


def read_run(path: Path) -> OfflineRun:
    """The run in a file; what a crash has cut off is left out.

    Raises:
        TrackingError: it is no file of the client's.
    """
    record_type = import_module("wandb.proto.wandb_internal_pb2").Record
    unreadable = import_module("google.protobuf.message").DecodeError
    found: OfflineRun | None = None
    for data in _records(path):
        record = record_type()
        try:
            record.ParseFromString(data)
        except unreadable:
            continue
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found = _begun(record.run, found)
        elif found is not None and kind == "history":
            found.rows.append(_items(record.history.item) | {"_step": int(record.history.step.num)})
        elif found is not None and kind == "summary":
            found.summary.update(_items(record.summary.update))
        elif found is not None and kind == "config":
            found.run = _with_config(found.run, record.config)
        elif found is not None and kind == "exit":
            found.exit_code = int(record.exit.exit_code)
    if found is None:
        raise TrackingError(f"{path} must hold a run of the W&B client, but holds none. Give a folder of offline runs.")
    return found


def _begun(record: Any, before: OfflineRun | None) -> OfflineRun:
    run = ForeignRun(
        entity=record.entity or "local",
        project=record.project or "uncategorized",
        id=record.run_id,
        name=record.display_name,
        group=record.run_group,
        config=before.run.config if before else None,
        created=float(record.start_time.seconds),
    )
    run = _with_config(run, record.config)
    if before is None:
        return OfflineRun(run)
    before.run = run
    return before


def _with_config(run: ForeignRun, record: Any) -> ForeignRun:
    """With what a record changes in its configuration; W&B's own entries are left out."""
    own = {key: value for key, value in _items(record.update).items() if key != "_wandb"}
    return replace(run, config={**(run.config or {}), **own})


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        path = list(item.nested_key) or [item.key]
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
    if not data.startswith(_IDENTITY):
        raise TrackingError(f"{path} must be a file of the W&B client, but does not begin like one.")
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
