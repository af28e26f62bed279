"""Runs and their files as `wandb.Api` asks for them: a mapping per run, whose costly fields are computed on demand."""

import json
import mimetypes
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from hashlib import md5
from pathlib import Path
from posixpath import normpath
from typing import Any
from urllib.parse import quote

from prunegpt.launch.log import LOG
from prunegpt.records import TrialResult, leaves
from prunegpt.root import Root
from prunegpt.tracking.endpoint.arguments import ENTITY
from prunegpt.tracking.endpoint.connection import NodeFields, connection, identifier, number, stamp
from prunegpt.tracking.endpoint.filters import selected
from prunegpt.tracking.endpoint.intake import parsed_object
from prunegpt.tracking.endpoint.runs import Runs, of_client
from prunegpt.tracking.foreign import Keeper
from prunegpt.tracking.run_path import RunPath

_STATES = {"waiting": "pending", "stopped": "killed", "diverged": "failed"}
_LOST = "lost"  # the reason of a run whose client has fallen silent: W&B says crashed
_SAMPLES = 500
_METADATA = "wandb-metadata.json"
_INFO = {"program": "program", "args": "args", "os": "os", "python": "python", "executable": "executable"}

VIEWER: NodeFields = {  # everybody who knows the token
    "id": "VXNlcjox",
    "name": ENTITY,
    "entity": ENTITY,
    "username": ENTITY,
    "email": "",
    "admin": False,
    "flags": "{}",
    "apiKeys": {"edges": []},
    "teams": {"edges": []},
    "defaultEntity": {"id": identifier("Entity", ENTITY), "name": ENTITY},
}


class RunNodes:
    """The runs of a root as nodes.

    Args:
        address: gives the address of this server, with the client's credentials, as files are to be fetched from it.
        artifacts: gives the artifacts that a run has used or logged.
    """

    def __init__(
        self, root: Root, runs: Runs, address: Callable[[], str], artifacts: Callable[[RunPath, bool], list[NodeFields]]
    ) -> None:
        self._root = root
        self._runs = runs
        self._address = address
        self._artifacts = artifacts

    def one(self, at: RunPath) -> NodeFields | None:
        """A run; None where there is none."""
        if self._runs.about(at) is None:
            return None
        return self._node(at, self._runs.store.result("/".join(self._runs.place(at))))

    def page(self, project: RunPath, filters: Any, order: Any, first: Any, after: Any) -> NodeFields:
        """Some runs of a project."""
        found = self._found(project, filters, order)
        return connection(found, lambda one: self._node(one["at"], one["trial"]), first, after)

    def count(self, project: RunPath, filters: Any) -> int:
        """How many runs of a project are like that."""
        return len(self._found(project, filters))

    def _found(self, at: RunPath, filters: Any, order: Any = None) -> list[NodeFields]:
        sweep = self._runs.place(at).sweep
        known = self._root.database.exists() and any(one.name == sweep for one in self._runs.store.sweeps())
        fields = [_fields(trial) for trial in (self._runs.store.results(sweep) if known else ()) if trial.plan.run]
        return selected((one for one in fields if one["at"][:2] == at[:2]), filters, order)

    def _node(self, at: RunPath, trial: TrialResult) -> NodeFields:
        run, plan = trial.plan.run, trial.plan

        @cache
        def keeper() -> Keeper:  # opened once for all fields of a node
            found = self._runs.about(at)
            assert found is not None
            return found

        def summary(_: Any) -> str:
            return json.dumps(dict(keeper().kept.summary))

        def config(_: Any) -> str:
            given = {name: {"value": value} for name, value in plan.config.items()}
            return json.dumps(given | {"_wandb": {"value": dict(keeper().kept.client)}})

        def log_lines(_: Any, **asked: Any) -> NodeFields:
            return _log_lines(keeper().folder / LOG, asked.get("first"), asked.get("last"), asked.get("after"))

        return {
            "id": identifier("Run", *at),
            "projectId": project_number(at),
            "name": at.id,
            "displayName": plan.label,
            "description": run.notes if run else "",
            "notes": run.notes if run else "",
            "tags": list(run.tags) if run else [],
            "state": _state(trial),
            "failed": trial.state == "failed",
            "running": trial.state == "running",
            "stopped": lambda _: keeper().kept.stop,
            "shouldStop": lambda _: keeper().kept.stop,
            "exitcode": 0 if trial.state == "finished" else None,
            "sweepName": (run.sweep if run else "") or None,
            "group": (run.group if run else "") or None,
            "groupName": (run.group if run else "") or None,
            "jobType": (run.job_type if run else "") or None,
            "host": (run.host if run else "") or None,
            "commit": lambda _: ((_info(keeper()) or {}).get("git") or {}).get("commit"),
            "readOnly": False,
            "createdAt": stamp(trial.started),
            "updatedAt": stamp(trial.ended or trial.started),
            "heartbeatAt": lambda _: stamp(keeper().active),
            "config": config,
            "wandbConfig": lambda _, keys=None: of_client(keeper().kept.client)(_, keys),
            "summaryMetrics": summary,
            "systemMetrics": lambda _: json.dumps(next(iter(reversed(list(keeper().events))), {})),
            "historyKeys": lambda _: _history_keys(keeper()),
            "historyLineCount": lambda _: keeper().kept.lines,
            "eventsLineCount": lambda _: keeper().kept.events,
            "logLineCount": lambda _: keeper().kept.output,
            "history": lambda _, **asked: _history(keeper(), **asked),
            "events": lambda _, samples=None: _sampled(keeper().events, samples),
            "sampledHistory": lambda _, specs=None: [_with_keys(keeper(), spec) for spec in specs or []],
            "parquetHistory": {"parquetUrls": [], "liveData": lambda _: list(keeper().history)},
            "logLines": log_lines,
            "fileCount": lambda _: len(_files(keeper(), (), None)),
            "files": lambda _, **asked: self._files(at, keeper(), **asked),
            "runInfo": lambda _: _info(keeper()),
            "user": VIEWER,
            "project": {
                "id": identifier("Project", at.entity, at.project),
                "internalId": project_number(at),
                "name": at.project,
                "entityName": at.entity,
                "entity": {"id": identifier("Entity", at.entity), "name": at.entity},
            },
            "inputArtifacts": lambda _, first=None, after=None: connection(
                self._artifacts(at, True), lambda one: one, first, after
            ),
            "outputArtifacts": lambda _, first=None, after=None: connection(
                self._artifacts(at, False), lambda one: one, first, after
            ),
        }

    def _files(
        self, at: RunPath, keeper: Keeper, names: Any = None, pattern: Any = None, first: Any = None, after: Any = None
    ) -> NodeFields:
        address = f"{self._address()}/files/{'/'.join(quote(part, safe='') for part in at)}"

        def node(file: tuple[str, Path]) -> NodeFields:
            name, path = file
            return {
                "id": identifier("File", *at, name),
                "name": name,
                "displayName": name,
                "url": f"{address}/{quote(name)}",
                "directUrl": f"{address}/{quote(name)}",
                "sizeBytes": path.stat().st_size,
                "mimetype": mimetypes.guess_type(name)[0],
                "updatedAt": stamp(path.stat().st_mtime),
                "md5": lambda _: b64encode(md5(path.read_bytes(), usedforsecurity=False).digest()).decode(),
            }

        return connection(_files(keeper, names or (), pattern), node, first, after)


def project_number(at: RunPath) -> str:
    """The number that clients know a project by: made of its name, and the same at every start."""
    return str(int(md5(f"{at.entity}/{at.project}".encode(), usedforsecurity=False).hexdigest()[:8], 16))


def _state(trial: TrialResult) -> str:
    return "crashed" if trial.reason == _LOST else _STATES.get(trial.state, trial.state)


def _fields(trial: TrialResult) -> NodeFields:
    """A run as filters know it."""
    run = trial.plan.run
    assert run is not None
    return {
        "at": RunPath(run.entity, run.project, run.id),
        "trial": trial,
        "name": run.id,
        "display_name": trial.label,
        "state": _state(trial),
        "sweep": run.sweep or None,
        "group": run.group or None,
        "job_type": run.job_type or None,
        "tags": list(run.tags),
        "created_at": stamp(trial.started),
        "heartbeat_at": stamp(trial.ended or trial.started),
        "config": trial.config,
        "summary_metrics": trial.logged,
    }


def _history(keeper: Keeper, samples: Any = None, minStep: Any = None, maxStep: Any = None) -> list[str]:
    """Rows as JSON: a sample of all, or all between two steps."""
    if minStep is None and maxStep is None:
        return _sampled(keeper.history, samples)
    low, high = number(minStep, "minStep", 0), number(maxStep, "maxStep", 1 << 62)
    return [json.dumps(row) for row in keeper.history if low <= row["_step"] < high]


def _sampled(rows: Iterable[Mapping[str, Any]], samples: Any) -> list[str]:
    return [json.dumps(row) for row in _spread(list(rows), _wanted(samples))]


def _wanted(samples: Any) -> int:
    """How many rows a sample may have."""
    return max(number(samples, "samples", _SAMPLES), 1)


def _spread(rows: Sequence[Any], most: int) -> Sequence[Any]:
    """So many rows at most, at even distances."""
    return rows[:: max(-(-len(rows) // most), 1)]


def _with_keys(keeper: Keeper, spec: Any) -> list[NodeFields]:
    """The rows that have all keys of a sampling, and no others of theirs.

    Its last step is the greatest that is wanted. Only older clients mean the one behind it, where they read page by
    page: as many samples as steps between the first and the last.
    """
    asked = parsed_object(spec, "a sampling") if isinstance(spec, str) else spec
    keys = list(asked.get("keys") or [])
    low, high = number(asked.get("minStep"), "minStep", 0), number(asked.get("maxStep"), "maxStep", 1 << 62)
    samples = _wanted(asked.get("samples"))
    high -= samples == high - low
    found = [row for row in keeper.history if all(key in row for key in keys) and low <= row["_step"] <= high]
    return [{key: row[key] for key in keys} for row in _spread(found, samples)]


def _history_keys(keeper: Keeper) -> NodeFields:
    keys: dict[str, NodeFields] = {}
    for row in keeper.history:
        for name, value in leaves(row):
            kind = "number" if isinstance(value, (int, float)) else type(value).__name__
            known = keys.setdefault(name, {"typeCounts": [{"type": kind, "count": 0}], "monotonic": False})
            known["typeCounts"][0]["count"] += 1
            known["previousValue"] = value
    return {"sets": [], "keys": keys, "lastStep": keeper.kept.last_step}


def _files(keeper: Keeper, names: Sequence[str], pattern: Any) -> list[tuple[str, Path]]:
    folder = keeper.folder / "files"
    found = [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]
    wanted = {normpath(str(name)) for name in names}  # clients ask for ./NAME too
    found = [(name, path) for name, path in found if not wanted or name in wanted]
    return [(name, path) for name, path in found if not pattern or fnmatchcase(name, str(pattern).replace("%", "*"))]


def _log_lines(log: Path, first: Any, last: Any, after: Any) -> NodeFields:
    try:
        lines = list(enumerate(log.read_text("utf-8", "replace").splitlines()))
    except OSError:
        lines = []
    if last is not None:
        lines = lines[max(len(lines) - number(last, "last", 0), 0) :]
    return connection(lines, lambda one: {"number": one[0], "line": one[1], "level": "info"}, first, after)


def _info(keeper: Keeper) -> NodeFields | None:
    try:
        found = json.loads((keeper.folder / "files" / _METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    git = found.get("git") or {}
    info = {name: found.get(key) for name, key in _INFO.items()}
    counts = {"cpuCount": found.get("cpu_count"), "gpuCount": found.get("gpu_count"), "gpu": found.get("gpu")}
    return {**info, **counts, "git": {"remote": git.get("remote") or git.get("remoteURL"), "commit": git.get("commit")}}
