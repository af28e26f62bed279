"""Sweeps and agents as clients ask for them and change them."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from prunegpt.root import Root
from prunegpt.spec.read import bounded_value
from prunegpt.tracking.claims import RunStatus
from prunegpt.tracking.endpoint.arguments import ENTITY, PROJECT, FieldArguments
from prunegpt.tracking.endpoint.choose import config_problems, next_point
from prunegpt.tracking.endpoint.connection import NodeFields, connection, identifier, stamp
from prunegpt.tracking.endpoint.filters import selected
from prunegpt.tracking.endpoint.hosted import OPEN, Agent, AgentHandler, Hosted, HostedRun, SweepFiles, run_id
from prunegpt.tracking.endpoint.intake import Rejected, parsed_object
from prunegpt.tracking.endpoint.runs import Runs
from prunegpt.tracking.run_path import RunPath, place_of
from prunegpt.tracking.values import plain

_STATES = {"leased": "pending", "stopped": "killed"}
_NONE = ("", "{}", "null")  # controllers and schedulers of clients that have none
_LARGEST_CONFIG = 256 << 10  # characters of a sweep config


class SweepNodes:
    """The sweeps of a root as nodes.

    Args:
        agents: called when agents speak, whose runs may fall silent.
        run: gives the node of a run that has logged something.
        project: gives the node of a project.
    """

    def __init__(
        self,
        root: Root,
        runs: Runs,
        agents: Callable[[], None],
        run: Callable[[RunPath], NodeFields | None],
        project: Callable[[RunPath], NodeFields],
    ) -> None:
        self._root = root
        self._sweeps = SweepFiles(root)
        self._runs = runs
        self._agents = agents
        self._run = run
        self._project = project
        self.mutations: Mapping[str, Callable[..., Any]] = {
            "upsertSweep": self._upsert,
            "createAgent": self._create_agent,
            "agentHeartbeat": self._heartbeat,
        }

    def get(self, name: str) -> Hosted | None:
        """The sweep of that short id."""
        return self._sweeps.get(name)

    def one(self, name: str) -> NodeFields | None:
        """A sweep; None where there is none."""
        hosted = self._sweeps.get(name)
        return self._node(hosted) if hosted else None

    def of_project(self, at: RunPath) -> NodeFields:
        """The fields of a project that are about sweeps."""

        def all_of() -> list[Hosted]:
            return [one for one in self._sweeps.all() if (one.entity, one.project) == (at.entity, at.project)]

        def sweeps(_: Any, first: Any = None, after: Any = None, filters: Any = None) -> NodeFields:
            found = selected(map(_fields, all_of()), filters)
            return connection(found, lambda one: self._node(one["sweep"]), first, after)

        return {
            "sweep": lambda _, **named: self.one(FieldArguments.read(named).sweep_name),
            "sweeps": sweeps,
            "totalSweeps": lambda _: len(all_of()),
        }

    def _upsert(self, _: Any, input: Any = None) -> NodeFields:
        asked = FieldArguments.read(input)
        if asked.prior_runs_filters and json.loads(asked.prior_runs_filters) not in ({}, None):
            raise Rejected("this server takes no earlier runs into a sweep. Leave --prior_run out.", 200)
        for name in ("controller", "scheduler"):
            if getattr(asked, name) not in _NONE:
                raise Rejected(f"this server is the scheduler of its sweeps, got a {name}. Leave it out.", 200)
        if not asked.id:
            hosted = _new(asked)
            place_of(self._root, RunPath(hosted.entity, hosted.project, ""), claim=True)
        else:
            found = [one for one in self._sweeps.all() if asked.id in (_sweep_id(one), one.name)]
            hosted = (found or missing("sweep"))[0]
            if asked.config:
                hosted.config = self._changed(hosted, _config(asked))
                hosted.display = asked.display_name or str(hosted.config.get("name") or "")
            if asked.state:
                self._handler(hosted).change(asked.state)
        self._sweeps.keep(hosted)
        return {"sweep": self._node(hosted), "configValidationWarnings": []}

    def _changed(self, hosted: Hosted, config: NodeFields) -> NodeFields:
        """Another config of a sweep.

        Raises:
            Rejected: it varies something else than what the sweep's runs have.
        """
        fixed = ("method", "parameters")
        if hosted.runs and any(hosted.config.get(name) != config.get(name) for name in fixed):
            raise Rejected(
                f"{' and '.join(fixed)} of a sweep that has runs stay as they are; it would change. Create another "
                "sweep.",
                200,
            )
        return config

    def _create_agent(self, _: Any, input: Any = None) -> NodeFields:
        asked = FieldArguments.read(input)
        hosted = self._sweeps.get(asked.sweep) or missing("sweep")
        agent = self._handler(hosted).register(asked.host, time.time())
        self._sweeps.keep(hosted)
        return {"agent": {"id": agent.id}}

    def _heartbeat(self, _: Any, input: Any = None) -> NodeFields:
        asked = FieldArguments.read(input)
        hosted = next((one for one in self._sweeps.all() if asked.id in one.agents), None) or missing("agent", 404)
        self._agents()
        alive = parsed_object(asked.run_state or "{}", "runState")
        before = hosted.model_dump_json(exclude={"agents"})
        running = [run for run, lives in alive.items() if lives]
        commands = self._handler(hosted).heartbeat(hosted.agents[asked.id], running, time.time())
        if hosted.model_dump_json(exclude={"agents"}) != before:
            self._sweeps.keep(hosted)
        return {"agent": {"id": asked.id}, "commands": json.dumps(commands)}

    def _handler(self, hosted: Hosted) -> AgentHandler:
        def status(run: str) -> RunStatus:
            return self._runs.status(RunPath(hosted.entity, hosted.project, run), hosted.metric)

        return AgentHandler(hosted, status, next_point)

    def _node(self, hosted: Hosted) -> NodeFields:
        at = RunPath(hosted.entity, hosted.project, "")

        def runs(found: list[HostedRun]) -> Callable[..., NodeFields]:
            def page(
                _: Any, first: Any = None, after: Any = None, order: Any = None, last: Any = None, before: Any = None
            ) -> NodeFields:
                if last is not None or before is not None:
                    raise Rejected("pages of a sweep's runs are read forwards here: first and after, not last, before.")
                fields = [self._fields_of_run(hosted, run, place) for place, run in enumerate(found)]
                ordered = selected(fields, None, order)
                return connection(ordered, lambda one: self._node_of_run(hosted, one["run"]), first, after)

            return page

        def agent(found: Agent) -> NodeFields:
            own = [run for run in hosted.runs if run.agent == found.id]
            mine = [run for run in own if self._state(hosted, run) != "leased"]
            return {
                "id": found.id,
                "name": found.id,
                "host": found.host,
                "state": "RUNNING",
                "totalRuns": len(mine),
                "createdAt": stamp(found.created or found.seen),
                "heartbeatAt": stamp(found.seen),
                "runs": runs(mine),
            }

        best = [run.metric for run in hosted.runs if run.metric is not None]
        return {
            "id": _sweep_id(hosted),
            "name": hosted.name,
            "displayName": hosted.display,
            "method": hosted.config.get("method"),
            "state": "PENDING" if hosted.state == "RUNNING" and not hosted.runs else hosted.state,
            "description": hosted.config.get("description"),
            "config": json.dumps(hosted.config),
            "createdAt": stamp(hosted.created),
            "updatedAt": stamp(hosted.created),
            "heartbeatAt": stamp(max((agent.seen for agent in hosted.agents.values()), default=None)),
            "bestLoss": min(best, key=lambda value: hosted.sign * value, default=None),
            "earlyStopJobRunning": False,
            "runCount": len(hosted.runs),
            "runCountExpected": hosted.config.get("run_cap"),
            "project": lambda _: self._project(at),
            "runs": runs(hosted.runs),
            "agents": {"edges": [{"node": agent(one)} for one in hosted.agents.values()]},
            "agent": lambda _, agentName=None: next(
                (agent(one) for one in hosted.agents.values() if one.id == agentName), None
            ),
        }

    def _state(self, hosted: Hosted, run: HostedRun) -> str:
        """The state of a run now: its agent, which reports the others, may have ended with it."""
        if run.state not in OPEN:
            return run.state
        found = self._runs.status(RunPath(hosted.entity, hosted.project, run.id), hosted.metric)
        ended = "failed" if found.ended == "diverged" else found.ended
        return ended or ("running" if found.started else run.state)

    def _fields_of_run(self, hosted: Hosted, run: HostedRun, place: int) -> NodeFields:
        """A run as orders know it."""
        return {
            "run": run,
            "created_at": place,
            "name": run.id,
            "state": self._state(hosted, run),
            "config": run.args,
            "summary_metrics": {hosted.metric: run.metric},
        }

    def _node_of_run(self, hosted: Hosted, run: HostedRun) -> NodeFields:
        at = RunPath(hosted.entity, hosted.project, run.id)
        known = self._run(at) or {
            "id": identifier("Run", *at),
            "displayName": run.id,
            "tags": [],
            "sampledHistory": [],
            "historyLineCount": 0,
            "config": json.dumps({name: {"value": value} for name, value in run.args.items()}),
            "summaryMetrics": json.dumps({hosted.metric: run.metric} if run.metric is not None else {}),
        }
        if run.metric is not None:
            summary = json.loads(_called(known["summaryMetrics"]))
            summary.setdefault(hosted.metric, run.metric)
            known["summaryMetrics"] = json.dumps(summary)
        state = self._state(hosted, run)
        own = {
            "name": run.id,
            "sweepName": hosted.name,
            "state": _STATES.get(state, state),
            "exitcode": 0 if state == "finished" else None,
            "shouldStop": bool(run.stop),
            "failed": state in ("failed", "crashed"),
            "stopped": state == "stopped",
            "running": state == "running",
        }
        return known | own


def _fields(hosted: Hosted) -> NodeFields:
    """A sweep as filters know it."""
    return {
        "sweep": hosted,
        "name": hosted.name,
        "display_name": hosted.display,
        "method": hosted.config.get("method"),
        "state": hosted.state,
        "created_at": stamp(hosted.created),
        "config": hosted.config,
    }


def missing(kind: str, status: int = 200) -> NoReturn:
    """Says that there is no such thing."""
    raise Rejected(f"there is no such {kind}.", status)


def _called(field: Any) -> str:
    """The value of a field of a node, which may be computed on demand."""
    return str(field(None) if callable(field) else field)


def _config(asked: FieldArguments) -> NodeFields:
    """The config of a sweep.

    Raises:
        Rejected: with every problem of it.
    """
    try:
        if len(asked.config) > _LARGEST_CONFIG:
            raise ValueError(f"it may have {_LARGEST_CONFIG} characters; it has more.")
        config = plain(bounded_value(asked.config))
    except ValueError as error:
        raise Rejected(f"a sweep config must be YAML: {error}", 200) from error
    problems = config_problems(config) if isinstance(config, dict) else ["a sweep config must be a mapping."]
    if problems:
        raise Rejected("; ".join(problems[:20]), 200)
    if asked.description:
        config.setdefault("description", asked.description)
    assert isinstance(config, dict)
    return config


def _new(asked: FieldArguments) -> Hosted:
    config = _config(asked)
    return Hosted(
        name=run_id(),
        entity=asked.entity_name or str(config.get("entity") or ENTITY),
        project=asked.project_name or str(config.get("project") or PROJECT),
        config=config,
        display=asked.display_name or str(config.get("name") or ""),
        created=time.time(),
        speaks="prunegpt" in (config.get("command") or ()),
    )


def _sweep_id(hosted: Hosted) -> str:
    return identifier("Sweep", hosted.name, hosted.project, hosted.entity)
