"""The GraphQL operations that agents and runs send, by name: variables in, what stands under `data` out."""

import base64
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from prunegpt.errors import PruneGPTError
from prunegpt.root import Root
from prunegpt.tracking.claims import read_claim
from prunegpt.tracking.endpoint.choose import config_problems, next_point
from prunegpt.tracking.endpoint.hosted import Agent, Desk, Hosted, Run, run_id
from prunegpt.tracking.endpoint.runs import Runs
from prunegpt.tracking.endpoint.sentry import Sentry
from prunegpt.tracking.endpoint.shelf import Shelf
from prunegpt.tracking.endpoint.signs import Signs, claimed
from prunegpt.tracking.foreign import ForeignRun
from prunegpt.tracking.posted import posted

ENTITY = "local"
PROJECT = "prunegpt"
_OPERATION = re.compile(r"(?:query|mutation)\s+(\w+)")
_STATES = {"leased": "pending", "stopped": "killed"}


class Refused(PruneGPTError):
    """An operation that is answered with an error, and its HTTP status."""

    def __init__(self, message: str, status: int = 200) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True)
class Sender:
    """What a request came with.

    Args:
        address: of this server, as the client knows it.
        credentials: its Authorization header, which uploads of files have to repeat.
    """

    address: str
    credentials: str = ""


class Operations:
    """Answers operations; everything under one lock, for answers are made in threads."""

    def __init__(self, root: Root, runs: Runs) -> None:
        self._root = root
        self._shelf = Shelf(root)
        self._runs = runs
        self._sentry = Sentry(root)
        self._sentry.wake(soon=False)  # an earlier server may have left some
        self._lock = Lock()
        self._sender = Sender("")
        self._known: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "Viewer": self._viewer,
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "ServerInfo": lambda _: {
                "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []}
            },
            "UpsertSweep": self._upsert_sweep,
            "UpsertSweepState": self._upsert_sweep,
            "SweepWithRuns": self._sweep_with_runs,
            "GetSweepState": self._sweep_with_runs,
            "CreateAgent": self._create_agent,
            "Heartbeat": self._heartbeat,
            "UpsertBucket": self._upsert_bucket,
            "RunResumeStatus": self._resume_status,
            "CreateRunFiles": self._create_files,
            "MarkRunFilesUploaded": lambda _: {"markRunFilesUploaded": {"success": True}},
            "RunState": self._run_state,
        }

    def answer(self, request: Mapping[str, Any], sender: Sender) -> dict[str, Any]:
        """The answer to a GraphQL request.

        Raises:
            Refused: the operation is unknown, or what it names is not there.
        """
        query = str(request.get("query", ""))
        found = _OPERATION.search(query)
        name = str(request.get("operationName") or (found[1] if found else "Viewer" if "viewer" in query else ""))
        if name not in self._known:
            raise Refused(f"this server has no operation {name!r}.")
        variables = request.get("variables") or {}
        with self._lock:
            self._sender = sender
            return {"data": self._known[name](variables)}

    def close(self) -> None:
        self._sentry.close()

    def page_of_run(self, entity: str, project: str, run: str) -> str:
        """The page of a run, which clients of W&B print the address of."""
        claim, own = read_claim(self._root, run), posted(self._root, run)
        if claim is not None and claim.trial:
            return f"/trials/{quote(claim.trial)}"
        if own is not None:
            return f"/trials/{quote(own.sweep)}/{quote(own.trial)}"
        foreign = ForeignRun(entity, project, run)
        return f"/trials/{quote(foreign.sweep)}/{quote(foreign.trial)}"

    def page_of_sweep(self, name: str) -> str:
        """The page of a hosted sweep: that of ours which its runs belong to."""
        with self._lock:
            hosted = self._shelf.get(name)
        if hosted is None:
            return "/"
        ours = "prunegpt" in (hosted.config.get("command") or ())
        sweep = hosted.display if ours else ForeignRun(hosted.entity, hosted.project, "").sweep
        return f"/sweeps/{quote(sweep)}"

    # -- who is there ---------------------------------------------------------------------------------------------

    def _viewer(self, _: Mapping[str, Any]) -> dict[str, Any]:
        teams: dict[str, Any] = {"edges": []}
        return {
            "viewer": {
                "id": "VXNlcjox",
                "entity": ENTITY,
                "username": ENTITY,
                "email": "",
                "flags": "{}",
                "teams": teams,
            }
        }

    # -- sweeps ---------------------------------------------------------------------------------------------------

    def _upsert_sweep(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        hosted = self._sweep_of_id(variables.get("id"))
        if hosted is None:
            if variables.get("id"):
                raise Refused("there is no such sweep.")
            hosted = self._new_sweep(variables)
        elif variables.get("state"):
            self._desk(hosted).change(variables["state"].upper(), time.time())
        self._shelf.keep(hosted)
        return {"upsertSweep": {"sweep": self._sweep(hosted), "configValidationWarnings": []}}

    def _new_sweep(self, variables: Mapping[str, Any]) -> Hosted:
        try:
            config = YAML(typ="safe", pure=True).load(variables.get("config") or "")
        except YAMLError as error:
            raise Refused(f"a sweep config must be YAML: {error}") from error
        problems = config_problems(config) if isinstance(config, dict) else ["a sweep config must be a mapping."]
        if problems:
            raise Refused("; ".join(problems))
        return Hosted(
            name=run_id(),
            entity=str(variables.get("entityName") or config.get("entity") or ENTITY),
            project=str(variables.get("projectName") or config.get("project") or PROJECT),
            config=config,
            display=str(variables.get("displayName") or config.get("name") or ""),
            created=time.time(),
            speaks="prunegpt" in (config.get("command") or ()),
        )

    def _sweep_with_runs(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        hosted = self._shelf.get(str(variables.get("sweep") or ""))
        return {"project": {"sweep": None if hosted is None else self._sweep(hosted)}}

    def _sweep(self, hosted: Hosted) -> dict[str, Any]:
        return {
            "id": _sweep_id(hosted),
            "name": hosted.name,
            "displayName": hosted.display,
            "method": hosted.config.get("method"),
            "state": hosted.state,
            "description": hosted.config.get("description"),
            "config": json.dumps(hosted.config),
            "createdAt": _stamp(hosted.created),
            "heartbeatAt": None,
            "updatedAt": None,
            "earlyStopJobRunning": False,
            "bestLoss": None,
            "controller": None,
            "scheduler": None,
            "project": _project(hosted.entity, hosted.project),
            "runs": {"edges": [{"node": self._node(hosted, run)} for run in hosted.runs]},
        }

    def _node(self, hosted: Hosted, run: Run) -> dict[str, Any]:
        return {
            "name": run.id,
            "state": _STATES.get(run.state, run.state),
            "config": json.dumps({name: {"value": value} for name, value in run.args.items()}),
            "exitcode": 0 if run.state == "finished" else None,
            "heartbeatAt": None,
            "shouldStop": bool(run.stop),
            "failed": run.state in ("failed", "crashed"),
            "stopped": run.state == "stopped",
            "running": run.state == "running",
            "summaryMetrics": json.dumps({hosted.metric: run.metric} if run.metric is not None else {}),
            "sampledHistory": [],
        }

    def _create_agent(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        hosted = self._shelf.get(str(variables.get("sweep") or ""))
        if hosted is None:
            raise Refused("there is no such sweep.")
        agent = self._desk(hosted).register(str(variables.get("host") or ""), time.time())
        self._shelf.keep(hosted)
        return {"createAgent": {"agent": {"id": agent.id}}}

    def _heartbeat(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        agent_id = str(variables.get("id") or "")
        hosted = self._shelf.of_agent(agent_id)
        if hosted is None:
            raise Refused("there is no such agent.", status=404)
        self._sentry.wake()
        alive = json.loads(variables.get("runState") or "{}")
        agent: Agent = hosted.agents[agent_id]
        before = hosted.model_dump_json(exclude={"agents"})
        commands = self._desk(hosted).heartbeat(agent, [run for run, lives in alive.items() if lives], time.time())
        if hosted.model_dump_json(exclude={"agents"}) != before:
            self._shelf.keep(hosted)
        return {"agentHeartbeat": {"agent": {"id": agent_id}, "commands": json.dumps(commands)}}

    def _desk(self, hosted: Hosted) -> Desk:
        def signs(run: str) -> Signs:
            found = claimed(self._root, run, hosted.metric)
            return found if found.started else self._runs.signs(hosted.entity, hosted.project, run, hosted.metric)

        return Desk(hosted, signs, next_point)

    def _sweep_of_id(self, text: Any) -> Hosted | None:
        return next((one for one in self._shelf.all() if text in (_sweep_id(one), one.name)), None) if text else None

    # -- runs -----------------------------------------------------------------------------------------------------

    def _upsert_bucket(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        entity = str(variables.get("entity") or ENTITY)
        project = str(variables.get("project") or PROJECT)
        name = str(variables.get("name") or variables.get("id") or run_id())
        hosted = self._shelf.get(str(variables.get("sweep") or ""))
        point = hosted.run(name) if hosted else None
        config = json.loads(variables.get("config") or "{}")
        inserted = self._runs.upsert(
            entity,
            project,
            name,
            display=variables.get("displayName"),
            group=variables.get("groupName") or (hosted.name if hosted else None),
            config={key: item.get("value") if isinstance(item, dict) else item for key, item in config.items()},
            swept=point.values if point else None,
            summary=json.loads(variables["summaryMetrics"]) if variables.get("summaryMetrics") else None,
        )
        bucket = {
            "id": _id("Run", entity, project, name),
            "name": name,
            "displayName": variables.get("displayName") or name,
            "description": None,
            "config": variables.get("config") or "{}",
            "sweepName": hosted.name if hosted else None,
            "historyLineCount": self._runs.lines(entity, project, name),
            "project": _project(entity, project),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _resume_status(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        entity = str(variables.get("entity") or ENTITY)
        project = str(variables.get("project") or PROJECT)
        name = str(variables.get("name") or "")
        known = self._runs.state(entity, project, name)
        return {"model": {**_project(entity, project), "bucket": None if known is None else {"name": name, **known}}}

    def _create_files(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        where = f"{variables.get('entity') or ENTITY}/{variables.get('project') or PROJECT}/{variables.get('run')}"
        files = [
            {"name": name, "uploadUrl": f"{self._sender.address}/files/{where}/upload/{name}"}
            for name in variables.get("files") or ()
            if not Path(str(name)).is_absolute() and ".." not in Path(str(name)).parts
        ]
        headers = [f"Authorization:{self._sender.credentials}"] if self._sender.credentials else []
        return {"createRunFiles": {"runID": variables.get("run"), "uploadHeaders": headers, "files": files}}

    def _run_state(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"state": "running"}}} if variables else {}


def _project(entity: str, project: str) -> dict[str, Any]:
    return {
        "id": _id("Project", entity, project),
        "name": project,
        "entity": {"id": _id("Entity", entity), "name": entity},
    }


def _sweep_id(hosted: Hosted) -> str:
    return _id("Sweep", hosted.name, hosted.project, hosted.entity)


def _id(*parts: str) -> str:
    return base64.b64encode(":".join(parts).encode()).decode()


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
