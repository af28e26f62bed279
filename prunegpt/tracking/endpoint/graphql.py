"""The W&B GraphQL API by the fields of `schema.graphql`, whatever a client calls its operations."""

import base64
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from threading import Lock
from typing import Any
from urllib.parse import quote

import graphql

from prunegpt.errors import listed
from prunegpt.root import Root
from prunegpt.tracking.claims import read_claim
from prunegpt.tracking.endpoint.arguments import ENTITY, PROJECT, FieldArguments, run_at
from prunegpt.tracking.endpoint.artifact_nodes import ArtifactNodes
from prunegpt.tracking.endpoint.artifacts import Artifacts
from prunegpt.tracking.endpoint.connection import NodeFields, connection, identifier, parts_of, stamp
from prunegpt.tracking.endpoint.hosted import run_id
from prunegpt.tracking.endpoint.intake import ClientMessage, Rejected, parsed_object
from prunegpt.tracking.endpoint.run_nodes import VIEWER, RunNodes, project_number
from prunegpt.tracking.endpoint.runs import Runs, is_below
from prunegpt.tracking.endpoint.sweep_nodes import SweepNodes, missing
from prunegpt.tracking.run_path import RunPath, began, place_of, projects_of
from prunegpt.tracking.uploader import posted

_LARGEST_QUERY = 5000  # tokens; those of the client have some hundred
_RULES = (graphql.FieldsOnCorrectTypeRule, graphql.KnownArgumentNamesRule, graphql.KnownTypeNamesRule)

_PROJECT_FIELDS = ("id", "name", "entityName", "clientMutationId")
_NEWEST = "0.31.0"  # client that is tested here: older ones ask for it before they use a field that is in the schema
_FEATURES = ("ARTIFACT_COLLECTIONS_FILTERING_SORTING",)  # which clients ask for before they use them
_SERVER: NodeFields = {
    "cliVersionInfo": {"max_cli_version": _NEWEST},
    "latestLocalVersionInfo": None,
    "features": [{"name": name, "isEnabled": True} for name in _FEATURES],
}


class GraphqlRequest(ClientMessage):
    """What a client asks."""

    query: str
    variables: dict[str, Any] | None = None
    operation_name: str | None = None


class Operations:
    """Answers operations; everything under one lock, for answers are made in threads.

    Args:
        agents: called when agents speak, whose runs may fall silent.
    """

    def __init__(self, root: Root, runs: Runs, artifacts: Artifacts, agents: Callable[[], None] = lambda: None) -> None:
        self._root = root
        self._runs = runs
        self._lock = Lock()
        self._sender = ("", "")  # this server's address as the client knows it, and the client's credentials
        self._artifacts = ArtifactNodes(artifacts, self._upload, self._fetched, self._run, self._project)
        self._nodes = RunNodes(root, runs, lambda: self._sender[0], self._artifacts.of_run)
        self._sweeps = SweepNodes(root, runs, agents, self._run, self._project)
        self._fields: Mapping[str, Any] = {
            "viewer": VIEWER,
            "serverInfo": _SERVER,
            "project": self._project_asked,
            "model": self._project_asked,
            "projects": self._projects,
            "models": self._projects,
            "entity": lambda _, name=None: self._entity(str(name or ENTITY)),
            "artifact": self._artifacts.artifact,
            "artifactCollection": self._artifacts.collection_by_id,
            "clientIDMapping": self._artifacts.client_mapping,
            "upsertBucket": self._upsert_bucket,
            "upsertModel": self._upsert_model,
            "stopRun": self._stop_run,
            "createRunFiles": self._create_files,
            "markRunFilesUploaded": {"success": True},
            "notifyScriptableRunAlert": self._alert,
            **self._sweeps.mutations,
            **self._artifacts.mutations,
        }

    def answer(self, request: Mapping[str, Any], address: str, credentials: str) -> NodeFields:
        """The answer to a GraphQL request.

        Args:
            address: of this server, as the client knows it.
            credentials: the client's Authorization header, which its uploads have to repeat.

        Raises:
            Rejected: it asks for what is unknown here, or what it names is not there.
        """
        asked = GraphqlRequest.of(request, "a request")
        try:
            parsed = graphql.parse(asked.query, max_tokens=_LARGEST_QUERY)
        except (graphql.GraphQLError, RecursionError) as error:
            raise Rejected(f"a query must be GraphQL: {error}") from error
        document = graphql.visit(parsed, _AnyVariables())
        name = asked.operation_name or None  # "" is what some clients send
        if problems := graphql.validate(schema(), document, _RULES):
            raise Rejected(f"this server has no operation {_name(name, document)!r}: {problems[0].message}", 200)
        with self._lock:
            self._sender = (address, credentials)
            result = graphql.execute_sync(
                schema(), document, self._fields, variable_values=asked.variables, operation_name=name
            )
        for problem in result.errors or ():
            raise problem.original_error or Rejected(problem.message)
        return {"data": result.data}

    def page_of_run(self, at: RunPath) -> str:
        """The page of a run, which clients of W&B print the address of.

        Raises:
            Rejected: there is none.
        """
        claim, own = read_claim(self._root, at.id), posted(self._root, at.id)
        if claim is not None and claim.trial:
            return f"/trials/{quote(claim.trial)}"
        if own is not None:
            return f"/trials/{quote(own.sweep)}/{quote(own.trial)}"
        if not self._runs.is_kept(at):
            raise Rejected(f"there is no run {'/'.join(at)!r:.200}.", 404)
        return f"/trials/{'/'.join(map(quote, self._runs.place(at)))}"

    def page_of_sweep(self, name: str) -> str:
        """The page of a hosted sweep: that of ours which its runs belong to.

        Raises:
            Rejected: there is none.
        """
        with self._lock:
            hosted = self._sweeps.get(name)
        if hosted is None:
            raise Rejected(f"there is no sweep {name!r:.80}.", 404)
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

    # -- projects -------------------------------------------------------------------------------------------------

    def _project_asked(self, _: Any, **named: Any) -> NodeFields | None:
        asked = FieldArguments.read(named)
        at = run_at(RunPath(asked.entity_name or ENTITY, asked.name or PROJECT, ""), "")
        return self._project(at) if not asked.name or self._is_known(at) else None  # that of who names none is there

    def _is_known(self, at: RunPath) -> bool:
        """Whether a project was made: by hand, or by its first run or sweep."""
        if (at.entity, at.project) in projects_of(self._root):
            return True  # earlier versions wrote no such list
        return began(self._root, at) > 0 or bool(self._sweeps.of_project(at)["totalSweeps"](None))

    def _project(self, at: RunPath) -> NodeFields:
        def bucket(_: Any, **named: Any) -> NodeFields | None:
            run = run_at(at, FieldArguments.read({"name": named.get("name")}).name)
            state = self._runs.state(run)
            if state is None:
                return None
            return {**(self._nodes.one(run) or {"id": identifier("Run", *run), "name": run.id}), **state}

        def runs(_: Any, filters: Any = None, order: Any = None, first: Any = None, after: Any = None) -> NodeFields:
            return self._nodes.page(at, filters, order, first, after)

        return {
            "id": identifier("Project", at.entity, at.project),
            "internalId": project_number(at),
            "name": at.project,
            "entityName": at.entity,
            "entity": self._entity(at.entity),
            "user": VIEWER,
            "readOnly": False,
            "access": "PRIVATE",
            "isBenchmark": False,
            "createdAt": lambda _: stamp(began(self._root, at)),
            "run": bucket,
            "bucket": bucket,
            "runs": runs,
            "buckets": runs,
            "runCount": lambda _, filters=None: self._nodes.count(at, filters),
            **self._sweeps.of_project(at),
            **self._artifacts.of_project(at),
        }

    def _projects(self, _: Any, entityName: Any = None, first: Any = None, after: Any = None) -> NodeFields:
        found = [RunPath(*one, "") for one in projects_of(self._root) if entityName in (None, "", one[0])]
        return connection(found, self._project, first, after)

    def _entity(self, name: str) -> NodeFields:
        return {
            "id": identifier("Entity", name),
            "name": name,
            "isTeam": False,
            "entityType": "user",
            "readOnly": False,
            "available": True,
            "codeSavingEnabled": True,
            "organization": None,
            "projects": lambda _, first=None, after=None: self._projects(None, name, first, after),
        }

    def _upsert_model(self, _: Any, input: Any = None) -> NodeFields:
        asked = FieldArguments.read(input)
        settings = sorted(name for name in input if name not in _PROJECT_FIELDS and input[name] is not None)
        if settings:
            raise Rejected(f"a project has no settings here, got {listed(settings)[:200]}. Leave them out.", 200)
        at = run_at(RunPath(asked.entity_name or ENTITY, asked.name or PROJECT, ""), "")
        inserted = (at.entity, at.project) not in projects_of(self._root)
        place_of(self._root, at, claim=True)
        return {"project": self._project(at), "model": self._project(at), "inserted": inserted}

    # -- runs -----------------------------------------------------------------------------------------------------

    def _run(self, at: RunPath) -> NodeFields | None:
        return self._nodes.one(at)

    def _upsert_bucket(self, _: Any, input: Any = None) -> NodeFields:
        if isinstance(input, Mapping) and str(state := input.get("state") or "running").lower() != "running":
            raise Rejected(
                f"a run is running here as soon as it is made, got the state {state!r:.40}. Leave it out.", 200
            )
        asked = FieldArguments.read(input)
        known = [] if asked.name else parts_of(asked.id, "Run")
        place, name = (RunPath(*known), known[2]) if known else (asked.project, asked.name or asked.id or run_id())
        at = run_at(place, name)
        hosted = self._sweeps.get(asked.sweep)
        point = hosted.run(at.id) if hosted else None
        given = parsed_object(asked.config or "{}", "config")
        config = {key: item.get("value") if isinstance(item, dict) else item for key, item in given.items()}
        client = config.pop("_wandb", None)
        inserted = self._runs.upsert(
            at,
            label=asked.display_name,
            config=config,
            begins=bool(asked.host or asked.job_program),  # what changes later comes without them
            client=client if isinstance(client, dict) else None,
            swept=point.values if point else None,
            summary=parsed_object(asked.summary_metrics, "summaryMetrics") if asked.summary_metrics else None,
            group=asked.group_name or None,
            job_type=asked.job_type or None,
            notes=asked.notes or asked.description or None,
            tags=asked.tags,
            host=asked.host or None,
            program=asked.job_program or None,
            sweep=hosted.name if hosted else None,
        )
        own: NodeFields = {
            "id": identifier("Run", *at),
            "name": at.id,
            "displayName": asked.display_name or at.id,
            "config": asked.config or "{}",
            "historyLineCount": self._runs.lines(at),
            "project": self._project(at),
        }
        sweep = {"sweepName": hosted.name} if hosted else {}
        bucket = {**own, **(self._run(at) or {}), **sweep}
        return {"bucket": bucket, "inserted": inserted, "serverSettings": {"serverMessages": []}}

    def _stop_run(self, _: Any, input: Any = None) -> NodeFields:
        known = parts_of(FieldArguments.read(input).id, "Run")
        if not known or not self._runs.ask_to_stop(RunPath(*known)):
            missing("run")
        return {"success": True}

    def _create_files(self, _: Any, input: Any = None) -> NodeFields:
        asked = FieldArguments.read(input)
        at = run_at(asked.project, asked.run_name)
        address, headers = self._upload()
        folder = f"{address}/files/{'/'.join(quote(part, safe='') for part in at)}/upload"
        names = [name for name in asked.files or () if is_below(name)]
        files = [{"name": name, "uploadUrl": f"{folder}/{quote(name)}"} for name in names]
        return {"runID": at.id, "uploadHeaders": headers, "files": files}

    def _alert(self, _: Any, input: Any = None) -> NodeFields:
        asked = FieldArguments.read(input)
        self._runs.alert(run_at(asked.project, asked.run_name), asked.title, asked.text, asked.severity)
        return {"success": True}

    def _upload(self) -> tuple[str, list[str]]:
        """The address that files are sent to, and the header that they need."""
        address, credentials = self._sender
        return address, [f"Authorization:{credentials}"] if credentials else []

    def _fetched(self) -> str:
        """The address that files are fetched from by clients which send no header: it has their own key in it."""
        address, credentials = self._sender
        kind, _, secret = credentials.partition(" ")
        if kind.casefold() != "basic":
            return address
        user, _, password = base64.b64decode(secret).decode("utf-8", "replace").partition(":")
        scheme, _, rest = address.partition("://")
        return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest}"


class _AnyVariables(graphql.Visitor):
    """Takes any variable for JSON: clients of other versions name types that nothing here has to know."""

    def enter_variable_definition(self, node: graphql.VariableDefinitionNode, *_: Any) -> graphql.Node:
        kind = graphql.NamedTypeNode(name=graphql.NameNode(value="JSON"))
        return graphql.VariableDefinitionNode(
            variable=node.variable, type=kind, default_value=node.default_value, directives=()
        )


@cache
def schema() -> graphql.GraphQLSchema:
    """What can be asked for; `schema.graphql` beside this file."""
    return graphql.build_schema(files(__package__).joinpath("schema.graphql").read_text(encoding="utf-8"))


def _name(name: str | None, document: graphql.DocumentNode) -> str:
    operation = graphql.get_operation_ast(document, name)
    return operation.name.value if operation and operation.name else ""
