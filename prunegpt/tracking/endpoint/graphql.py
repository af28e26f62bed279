"""The part of the W&B GraphQL API that agents and runs ask for, by field: arguments in, values out."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Annotated, Any, NoReturn, Self
from urllib.parse import quote

import graphql
from pydantic import BeforeValidator, Field

from prunegpt.root import Root
from prunegpt.spec.read import bounded_value
from prunegpt.tracking.claims import RunStatus, read_claim
from prunegpt.tracking.endpoint.choose import config_problems, next_point
from prunegpt.tracking.endpoint.hosted import AgentHandler, Hosted, HostedRun, SweepFiles, SweepState, run_id
from prunegpt.tracking.endpoint.intake import ClientMessage, Rejected, parsed_object
from prunegpt.tracking.endpoint.runs import Runs, is_below
from prunegpt.tracking.run_path import RunPath
from prunegpt.tracking.uploader import posted
from prunegpt.tracking.values import plain

ENTITY = "local"
PROJECT = "prunegpt"
_STATES = {"leased": "pending", "stopped": "killed"}
_VIEWER = {
    "id": "VXNlcjox",
    "entity": ENTITY,
    "username": ENTITY,
    "email": "",
    "flags": "{}",
    "teams": {"edges": []},
}

_SCHEMA = graphql.build_schema("""
scalar JSON
type Project {
  id: JSON, name: JSON, entity: JSON
  sweep(sweepName: JSON): JSON
  run(name: JSON): JSON
  bucket(name: JSON, missingOk: JSON): JSON
}
type Query {
  viewer: JSON
  serverInfo: JSON
  project(name: JSON, entityName: JSON): Project
  model(name: JSON, entityName: JSON): Project
}
type Mutation {
  upsertSweep(input: JSON): JSON
  createAgent(input: JSON): JSON
  agentHeartbeat(input: JSON): JSON
  upsertBucket(input: JSON): JSON
  createRunFiles(input: JSON): JSON
  markRunFilesUploaded(input: JSON): JSON
}
""")  # nested values are returned whole: clients take what they need

_LARGEST_QUERY = 5000  # tokens; those of the client have some hundred
_LARGEST_CONFIG = 256 << 10  # characters of a sweep config

Name = Annotated[str, Field(max_length=256)]


class FieldArguments(ClientMessage):
    """What the fields below take: each some of it."""

    entity_name: Name = ""
    project_name: Name = ""
    model_name: Name = ""
    run_name: Name = ""
    id: Name = ""
    name: Name = ""
    display_name: Name = ""
    group_name: Name = ""
    sweep: Name = ""
    sweep_name: Name = ""
    host: Name = ""
    state: Annotated[SweepState, BeforeValidator(lambda state: str(state).upper())] | None = None
    config: str = ""
    summary_metrics: str = ""
    run_state: str = ""
    files: Annotated[list[Name], Field(max_length=10_000)] | None = None
    job_type: Name = ""
    job_program: str = Field("", max_length=4096)
    notes: str = Field("", max_length=100_000)
    tags: Annotated[tuple[Name, ...], Field(max_length=1000)] | None = None

    @classmethod
    def read(cls, given: Any) -> Self:
        """Arguments, without those whose variables were not given.

        Raises:
            Rejected: they are something else.
        """
        if isinstance(given, Mapping):
            given = {name: value for name, value in given.items() if value not in (graphql.Undefined, None)}
        return cls.of(given, "input")

    @property
    def project(self) -> RunPath:
        return RunPath(self.entity_name or ENTITY, self.project_name or self.model_name or PROJECT, "")


class _AnyVariables(graphql.Visitor):
    """Takes any variable for JSON: clients of other versions name types that nothing here has to know."""

    def enter_variable_definition(self, node: graphql.VariableDefinitionNode, *_: Any) -> graphql.Node:
        kind = graphql.NamedTypeNode(name=graphql.NameNode(value="JSON"))
        return graphql.VariableDefinitionNode(
            variable=node.variable, type=kind, default_value=node.default_value, directives=()
        )


class Operations:
    """Answers operations; everything under one lock, for answers are made in threads."""

    def __init__(self, root: Root, runs: Runs, agents: Callable[[], None] = lambda: None) -> None:
        self._root = root
        self._sweeps = SweepFiles(root)
        self._runs = runs
        self._agents = agents  # called when agents speak, whose runs may fall silent
        self._lock = Lock()
        self._sender = ("", "")  # this server's address as the client knows it, and the client's credentials
        self._fields: Mapping[str, Any] = {
            "viewer": _VIEWER,
            "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []},
            "project": self._project,
            "model": self._project,
            "upsertSweep": self._upsert_sweep,
            "createAgent": self._create_agent,
            "agentHeartbeat": self._heartbeat,
            "upsertBucket": self._upsert_bucket,
            "createRunFiles": self._create_files,
            "markRunFilesUploaded": {"success": True},
        }

    def answer(self, request: Mapping[str, Any], address: str, credentials: str) -> dict[str, Any]:
        """The answer to a GraphQL request.

        Args:
            address: of this server, as the client knows it.
            credentials: the client's Authorization header, which its uploads have to repeat.

        Raises:
            Rejected: it asks for what is unknown here, or what it names is not there.
        """
        asked = _Request.of(request, "a request")
        try:
            parsed = graphql.parse(asked.query, max_tokens=_LARGEST_QUERY)
        except (graphql.GraphQLError, RecursionError) as error:
            raise Rejected(f"a query must be GraphQL, but: {error}") from error
        document = graphql.visit(parsed, _AnyVariables())
        name = asked.operation_name or None  # "" is what some clients send
        if problems := graphql.validate(_SCHEMA, document, [graphql.FieldsOnCorrectTypeRule]):
            raise Rejected(f"this server has no operation {_name(name, document)!r}: {problems[0].message}", 200)
        with self._lock:
            self._sender = (address, credentials)
            result = graphql.execute_sync(
                _SCHEMA, document, self._fields, variable_values=asked.variables, operation_name=name
            )
        for problem in result.errors or ():
            raise problem.original_error or Rejected(problem.message)
        return {"data": result.data}

    def page_of_run(self, at: RunPath) -> str:
        """The page of a run, which clients of W&B print the address of."""
        claim, own = read_claim(self._root, at.id), posted(self._root, at.id)
        if claim is not None and claim.trial:
            return f"/trials/{quote(claim.trial)}"
        if own is not None:
            return f"/trials/{quote(own.sweep)}/{quote(own.trial)}"
        return f"/trials/{'/'.join(map(quote, self._runs.place(at)))}"

    def page_of_sweep(self, name: str) -> str:
        """The page of a hosted sweep: that of ours which its runs belong to."""
        with self._lock:
            hosted = self._sweeps.get(name)
        if hosted is None:
            return "/"
        ours = "prunegpt" in (hosted.config.get("command") or ())
        return f"/sweeps/{quote(hosted.display)}" if ours else self.page_of_project(hosted.entity, hosted.project)

    def page_of_project(self, entity: str, project: str) -> str:
        """The page of the sweep that has the runs of a project.

        Raises:
            Rejected: nothing was logged to it.
        """
        sweep = self._runs.place(RunPath(entity, project, "")).sweep
        if not (self._root.path / "trials" / sweep).exists():
            raise Rejected(f"nothing was logged to {entity}/{project}.", 404)
        return f"/sweeps/{quote(sweep)}"

    def _project(self, _: Any, **named: Any) -> dict[str, Any]:
        asked = FieldArguments.read(named)
        at = RunPath(asked.entity_name or ENTITY, asked.name or PROJECT, "")

        def sweep(_: Any, **named: Any) -> dict[str, Any] | None:
            hosted = self._sweeps.get(FieldArguments.read(named).sweep_name)
            return _sweep(hosted) if hosted else None

        def bucket(_: Any, **named: Any) -> dict[str, Any] | None:
            run = run_at(at, FieldArguments.read(named).name)
            state = self._runs.state(run)
            return {"id": _id("Run", *run), "name": run.id, **state} if state else None

        return {**_project(at), "sweep": sweep, "run": {"state": "running"}, "bucket": bucket}

    # -- sweeps ---------------------------------------------------------------------------------------------------

    def _upsert_sweep(self, _: Any, input: Any = None) -> dict[str, Any]:
        asked = FieldArguments.read(input)
        if not asked.id:
            hosted = _new_sweep(asked)
        else:
            found = [one for one in self._sweeps.all() if asked.id in (_sweep_id(one), one.name)]
            hosted = (found or _missing("sweep"))[0]
            if asked.state:
                self._handler(hosted).change(asked.state)
        self._sweeps.keep(hosted)
        return {"sweep": _sweep(hosted), "configValidationWarnings": []}

    def _create_agent(self, _: Any, input: Any = None) -> dict[str, Any]:
        asked = FieldArguments.read(input)
        hosted = self._sweeps.get(asked.sweep) or _missing("sweep")
        agent = self._handler(hosted).register(asked.host, time.time())
        self._sweeps.keep(hosted)
        return {"agent": {"id": agent.id}}

    def _heartbeat(self, _: Any, input: Any = None) -> dict[str, Any]:
        asked = FieldArguments.read(input)
        hosted = next((one for one in self._sweeps.all() if asked.id in one.agents), None) or _missing("agent", 404)
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

    # -- runs -----------------------------------------------------------------------------------------------------

    def _upsert_bucket(self, _: Any, input: Any = None) -> dict[str, Any]:
        asked = FieldArguments.read(input)
        at = run_at(asked.project, asked.name or asked.id or run_id())
        hosted = self._sweeps.get(asked.sweep)
        point = hosted.run(at.id) if hosted else None
        given = parsed_object(asked.config or "{}", "config")
        config = {key: item.get("value") if isinstance(item, dict) else item for key, item in given.items()}
        client = config.pop("_wandb", None)
        inserted = self._runs.upsert(
            at,
            label=asked.display_name,
            config=config,
            client=client if isinstance(client, dict) else None,
            swept=point.values if point else None,
            summary=parsed_object(asked.summary_metrics, "summaryMetrics") if asked.summary_metrics else None,
            group=asked.group_name or None,
            job_type=asked.job_type or None,
            notes=asked.notes or None,
            tags=asked.tags,
            host=asked.host or None,
            program=asked.job_program or None,
            sweep=hosted.name if hosted else None,
        )
        bucket = {
            "id": _id("HostedRun", *at),
            "name": at.id,
            "displayName": asked.display_name or at.id,
            "description": None,
            "config": asked.config or "{}",
            "sweepName": hosted.name if hosted else None,
            "historyLineCount": self._runs.lines(at),
            "project": _project(at),
        }
        return {"bucket": bucket, "inserted": inserted}

    def _create_files(self, _: Any, input: Any = None) -> dict[str, Any]:
        asked = FieldArguments.read(input)
        at = run_at(asked.project, asked.run_name)
        address, credentials = self._sender
        folder = f"{address}/files/{'/'.join(at)}/upload"
        files = [{"name": name, "uploadUrl": f"{folder}/{name}"} for name in asked.files or () if is_below(name)]
        headers = [f"Authorization:{credentials}"] if credentials else []
        return {"runID": at.id, "uploadHeaders": headers, "files": files}


class _Request(ClientMessage):
    query: str
    variables: dict[str, Any] | None = None
    operation_name: str | None = None


def run_at(project: RunPath, name: Any) -> RunPath:
    """A run of a project.

    Raises:
        Rejected: a name is none.
    """
    for part in (project.entity, project.project, name):
        if not isinstance(part, str) or len(part) > 256 or "\0" in part:
            raise Rejected(f"a name must be a text of 256 characters at most, without NUL, but is {part!r:.80}.")
    return RunPath(project.entity, project.project, name)


def _name(name: str | None, document: graphql.DocumentNode) -> str:
    operation = graphql.get_operation_ast(document, name)
    return operation.name.value if operation and operation.name else ""


def _missing(kind: str, status: int = 200) -> NoReturn:
    raise Rejected(f"there is no such {kind}.", status)


def _new_sweep(asked: FieldArguments) -> Hosted:
    try:
        if len(asked.config) > _LARGEST_CONFIG:
            raise ValueError(f"it may have {_LARGEST_CONFIG} characters, but has more.")
        config = plain(bounded_value(asked.config))
    except ValueError as error:
        raise Rejected(f"a sweep config must be YAML, but: {error}", 200) from error
    problems = config_problems(config) if isinstance(config, dict) else ["a sweep config must be a mapping."]
    if problems:
        raise Rejected("; ".join(problems[:20]), 200)
    return Hosted(
        name=run_id(),
        entity=asked.entity_name or str(config.get("entity") or ENTITY),
        project=asked.project_name or str(config.get("project") or PROJECT),
        config=config,
        display=asked.display_name or str(config.get("name") or ""),
        created=time.time(),
        speaks="prunegpt" in (config.get("command") or ()),
    )


def _sweep(hosted: Hosted) -> dict[str, Any]:
    return {
        "id": _sweep_id(hosted),
        "name": hosted.name,
        "displayName": hosted.display,
        "method": hosted.config.get("method"),
        "state": hosted.state,
        "description": hosted.config.get("description"),
        "config": json.dumps(hosted.config),
        "createdAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(hosted.created)),
        **dict.fromkeys(("heartbeatAt", "updatedAt", "bestLoss", "controller", "scheduler")),
        "earlyStopJobRunning": False,
        "project": _project(RunPath(hosted.entity, hosted.project, "")),
        "runs": {"edges": [{"node": _node(hosted, run)} for run in hosted.runs]},
    }


def _node(hosted: Hosted, run: HostedRun) -> dict[str, Any]:
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


def _project(at: RunPath) -> dict[str, Any]:
    entity = {"id": _id("Entity", at.entity), "name": at.entity}
    return {"id": _id("Project", at.entity, at.project), "name": at.project, "entity": entity}


def _sweep_id(hosted: Hosted) -> str:
    return _id("Sweep", hosted.name, hosted.project, hosted.entity)


def _id(*parts: str) -> str:
    return base64.b64encode(":".join(parts).encode()).decode()
