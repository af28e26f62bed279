"""Records of attempts that were cut or edited, and curves that end in half a line."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prunegpt.records import AttemptRecord, StageRecord
from prunegpt.root import Root, set_aside
from prunegpt.store import AttemptRow, Store
from prunegpt.sweep.repair.database import attempt_folders, opens, plan_in, record_in
from prunegpt.sweep.repair.finding import Finding


def broken_attempts(root: Root) -> Iterator[Finding]:
    """Files of attempts that are not what was written."""
    rows = _rows(root)
    for folder in attempt_folders(root):
        row, stages = rows.get(folder.relative_to(root.path).as_posix(), (None, ()))
        if (folder / "trial.json").exists() and plan_in(folder) is None:
            text = "trial.json cannot be read: it was cut or edited. Its trial does not need it any more."
            yield Finding("attempt", folder, text, "set it aside", apply=partial(set_aside, folder / "trial.json"))
        yield from _record(folder, row, stages)
        yield from _points(folder, row)


def _rows(root: Root) -> dict[str, tuple[AttemptRow, tuple[StageRecord, ...]]]:
    """Folder below the root -> what the database says of the attempt: the last of each trial has its stages."""
    if not opens(root):
        return {}
    found = {}
    with Store.open(root, create=False) as store:
        for sweep in store.sweeps():
            for result in store.results(sweep.name, shown=None):
                for row in store.attempts(result.id):
                    found[row.folder] = (row, result.stages if row.folder == result.folder else ())
    return found


def _record(folder: Path, row: AttemptRow | None, stages: tuple[StageRecord, ...]) -> Iterator[Finding]:
    path = folder / "record.json"
    if not path.exists():
        return
    record = record_in(folder)
    if record is None:
        text = "record.json cannot be read: it was cut or edited."
    elif row is None or row.state == "running" or _agree(record, row, stages):
        return
    else:
        text = f"record.json says {_figures(record.stages)}, but the database {_figures(stages)}: one was edited."
    if row is None or row.state == "running":
        yield Finding("attempt", folder, text, "set record.json aside", apply=partial(set_aside, path))
        return
    fix = "write it again from the database; what it says now is set aside"
    yield Finding("attempt", folder, text, fix, apply=partial(_rewrite, path, row, stages))


def _agree(record: AttemptRecord, row: AttemptRow, stages: tuple[StageRecord, ...]) -> bool:
    if not stages or not record.stages or record.state != row.state:
        return True  # the coordinator may call it something else, and knows why
    return _measured(record.stages) == _measured(stages)


def _measured(stages: tuple[StageRecord, ...]) -> list[object]:
    return [(stage.key, stage.evaluation, stage.sparsity) for stage in stages]


def _figures(stages: tuple[StageRecord, ...]) -> str:
    values = [stage.evaluation.perplexity if stage.evaluation else None for stage in stages]
    return "perplexity " + (", ".join(str(value) for value in values) or "none")


def _rewrite(path: Path, row: AttemptRow, stages: tuple[StageRecord, ...]) -> None:
    set_aside(path)
    AttemptRecord.model_validate(
        {
            **{name: getattr(row, name) for name in ("sweep", "trial", "state", "reason", "error", "trace", "device")},
            "attempt": row.number,
            "stages": stages,
            "started": row.started,
            "ended": row.ended or 0.0,
            "versions": row.versions,
        }
    ).write(path)


def _points(folder: Path, row: AttemptRow | None) -> Iterator[Finding]:
    path = folder / "points.jsonl"
    if not path.exists() or not (folder / "record.json").exists():
        return  # it may be resumed, and its next write closes the line
    data = path.read_bytes()
    if row and row.offset > len(data):
        text = (
            f"points.jsonl has {len(data)} bytes, but {row.offset} were read: it was cut. The database has its points."
        )
        yield Finding("attempt", path, text)
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        text = "points.jsonl ends in half a line: its process was killed in mid-write. Readers pass over it."
        yield Finding("attempt", path, text, "cut that half line off", deletes=True, apply=lambda: _cut(path, whole))


def _cut(path: Path, size: int) -> None:
    os.truncate(path, size)
