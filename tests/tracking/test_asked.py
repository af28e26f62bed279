"""Every field, argument and route that is asked for answers with what is stored, or refuses by name."""

import json
from collections.abc import Iterator
from hashlib import md5
from typing import Any

import graphql
import pytest
from starlette.routing import Route

from prunegpt.root import Root
from prunegpt.tracking.endpoint.graphql import schema
from tests.tracking.endpoint_client import GRID, Client

CONTENT = b"hello"
DIGEST = md5(CONTENT, usedforsecurity=False).hexdigest()
BASE64 = "XUFAKrxLKna5cZ2REBfFkg=="
MANIFEST = {"version": 1, "contents": {name: {"digest": BASE64, "size": 5} for name in ("a.txt", "b.txt")}}
PROJECT = 'project(name: "mine", entityName: "local")'
TYPE = f'{PROJECT} {{ artifactType(name: "dataset")'
COLLECTION = f'{PROJECT} {{ artifactCollection(name: "data")'
WHERE = {  # a type -> the way to one of them; every other type is inside these
    "Query": "",
    "User": "viewer",
    "Entity": 'entity(name: "local")',
    "Project": PROJECT,
    "Run": f'{PROJECT} {{ run(name: "run0")',
    "Sweep": f'{PROJECT} {{ sweep(sweepName: "SWEEP")',
    "Agent": f'{PROJECT} {{ sweep(sweepName: "SWEEP") {{ agent(agentName: "AGENT")',
    "Artifact": f'{PROJECT} {{ artifact(name: "data:v0")',
    "ArtifactType": TYPE,
    "ArtifactCollection": COLLECTION,
    "ArtifactSequence": f'{TYPE} {{ artifactSequence(name: "data")',
    "ArtifactCollectionMembership": f'{PROJECT} {{ artifactCollectionMembership(name: "data:v0")',
    "File": f'{PROJECT} {{ run(name: "run0") {{ files {{ edges {{ node',
}
OTHER: dict[str, Any] = {  # a value of an argument with which the answer is another one, or a refusal
    "first": 0,
    "after": "1",
    "last": 0,
    "before": "x",
    "filters": '{"name": "nobody"}',
    "names": ["nobody"],
    "pattern": "nobody%",
    "samples": 1,
    "minStep": 2,
    "maxStep": 1,
    "keys": ["nobody"],
    "specs": [json.dumps({"keys": ["loss"], "samples": 1})],
    "entries": [{"name": "b.txt"}],
}
ORDERS = ("-created_at", "-name", "+version_index")
REQUIRED = {"entityName", "name", "sweepName", "agentName", "aliasName", "id", "clientID"}  # that name what is meant
WITHOUT_EFFECT = {
    "desc": "what a run that is made then would be called; none is made",
    "missingOk": "a run that is not there is null either way",
    "enableTracking": "counts downloads, which nobody here looks up",
    "useImprovedPagination": "pages are the same either way",
    "liveKeys": "live rows come with all their keys",
    "storageLayout": "there is one",
    "manifestVersion": "there is one",
    "storageRegion": "there is one; artifacts for another are refused when they are logged",
    "upload": "files are sent to where createRunFiles says",
}
ABSENT = {  # what is null or empty although everything was said that a client can say
    "User.email": "clients give none",
    "User.deletedAt": "there is one user, who stays",
    "User.apiKeys": "keys are shown to nobody",
    "User.teams": "there are none",
    "Entity.organization": "there is none",
    "Project.description": "a setting of a project, which is refused",
    "Project.views": "reports are refused",
    "Project.repo": "a setting of a project, which is refused",
    "Project.dockerImage": "a setting of a project, which is refused",
    "Sweep.controller": "refused",
    "Sweep.scheduler": "refused",
    "ArtifactType.description": "is not said of types that runs make",
    "ArtifactCollection.description": "changes of collections are refused",
    "ArtifactCollection.tags": "changes of collections are refused",
    "ArtifactSequence.description": "changes of collections are refused",
    "ArtifactSequence.tags": "changes of collections are refused",
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A root in which everything is that a client can ask for, twice where it comes in lists."""
    client = Client(Root(tmp_path_factory.mktemp("stored")))
    metric = {"name": "loss", "goal": "minimize"}
    sweep = client.sweep({**GRID, "name": "shown", "description": "why", "metric": metric, "run_cap": 5})
    agent = client.ask("CreateAgent", sweep=sweep, host="h")["createAgent"]["agent"]["id"]
    for _ in range(2):
        (command,) = client.heartbeat(agent)
        client.ask("UpsertBucket", name=command["run_id"], project="mine", config="{}", sweep=sweep)
        client.stream(
            command["run_id"],
            [{"_step": 0, "loss": 1.0}],
            files={"wandb-summary.json": {"content": ['{"loss": 1.0}']}},
            complete=True,
            exitcode=0,
        )
    said = {"tags": ["t"], "notes": "why", "jobType": "train", "groupName": "g", "host": "h", "sweep": sweep}
    config = {"a": {"value": 1}, "_wandb": {"value": {"t": {"1": 2}}}}
    client.ask("UpsertBucket", name="run0", project="mine", config=json.dumps(config), **said)
    client.ask("UpsertBucket", name="run1", project="other", config="{}")
    printed = {"wandb-events.jsonl": {"content": ['{"system.cpu": 1}', '{"system.cpu": 2}']}}
    printed["output.log"] = {"content": ["one", "two"]}
    client.stream("run0", [{"_step": step, "loss": step, "acc": 1} for step in range(3)], files=printed)
    metadata = json.dumps({"program": "a.py", "git": {"commit": "c0ffee"}})
    client.http.put("/files/local/mine/run0/upload/wandb-metadata.json", content=metadata)
    for name in ("c.txt", "d.txt"):
        client.http.put(f"/files/local/mine/run0/upload/{name}", content=CONTENT)
    for collection in ("data", "more"):
        for number in range(2):
            _log(client, collection, number)
    client.stream("run0", [], complete=True, exitcode=0)
    client.sweep()
    client.http.sweep, client.http.agent = sweep, agent  # type: ignore[attr-defined]
    yield client
    client.endpoints[0].close()


def _log(client: Client, collection: str, number: int) -> None:
    about = {"entityName": "local", "projectName": "mine", "runName": "run0", "artifactTypeName": "dataset"}
    said = {"artifactCollectionName": collection, "digest": f"d{number}", "aliases": [{"alias": f"best{number}"}]}
    said |= {"description": "why", "historyStep": 2, "tags": [{"tagName": "t"}]}

    def ask(mutation: str, fields: str, **given: Any) -> Any:
        query = f"mutation ($input: J) {{ {mutation}(input: $input) {{ {fields} }} }}"
        answer = client.http.post("/graphql", json={"query": query, "variables": {"input": given}}).json()
        assert not answer.get("errors"), answer
        return answer["data"][mutation]

    made = ask("createArtifact", "artifact { id }", **about, **said)["artifact"]["id"]
    name = ask("createArtifactManifest", "artifactManifest { id }", artifactID=made)["artifactManifest"]["id"]
    client.http.put(f"/artifact-manifests/{name}", content=json.dumps(MANIFEST))
    client.http.put(f"/artifact-files/{made}/{DIGEST}", content=CONTENT)
    ask("commitArtifact", "artifact { id }", artifactID=made)
    ask("useArtifact", "artifact { id }", artifactID=made, **about)


def _asked(client: Client, kind: str, selection: str, **variables: Any) -> Any:
    """What is answered of a type's object, or the messages of a refusal."""
    way = WHERE[kind].replace("SWEEP", client.http.sweep).replace("AGENT", client.http.agent)  # type: ignore[attr-defined]
    query = (
        f"query ($v: J) {{ {way} {{ {selection} }} {'}' * way.count('{')} }}"
        if way
        else f"query ($v: J) {{ {selection} }}"
    )
    answer = client.http.post("/graphql", json={"query": query, "variables": variables}).json()
    found = answer.get("data")
    while isinstance(found, dict) and len(found) == 1:
        (found,) = found.values()
    return answer.get("errors") or found


def _scalars(kind: Any, depth: int = 3) -> str:
    """The fields of a type that have no arguments, and of what they lead to."""
    named = graphql.get_named_type(kind)
    found = []
    for name, field in getattr(named, "fields", {}).items():
        inner = graphql.get_named_type(field.type)
        if not graphql.is_composite_type(inner):
            found.append(name)
        elif depth and not field.args and name in ("edges", "node", "pageInfo", "artifact"):
            found.append(f"{name} {{ {_scalars(inner, depth - 1)} }}")
    return " ".join(found) or "__typename"


def _field(kind: str, name: str, given: str = "") -> str:
    field = schema().type_map[kind].fields[name]
    inside = f" {{ {_scalars(field.type)} }}" if graphql.is_composite_type(graphql.get_named_type(field.type)) else ""
    return f"{name}{given}{inside}"


def test_every_argument_has_an_effect_or_is_named(stored: Client) -> None:
    without = []
    for kind in WHERE:
        for name, field in schema().type_map[kind].fields.items():
            fixed = 'specs: [{keys: ["loss"]}] ' if "specs" in field.args else ""
            arguments = set(field.args) - REQUIRED - set(WITHOUT_EFFECT)
            plain = _asked(stored, kind, _field(kind, name, f"({fixed})" if fixed else "")) if arguments else None
            for argument in arguments:
                given = _field(kind, name, f"({fixed if argument != 'specs' else ''}{argument}: $v)")
                values = ORDERS if argument == "order" else (OTHER[argument],)
                if all(plain == _asked(stored, kind, given, v=value) for value in values):
                    without.append(f"{kind}.{name}({argument})")
    assert without == []


def test_every_field_says_something_of_a_root_that_has_everything(stored: Client) -> None:
    empty = []
    for kind in WHERE:
        for name, field in schema().type_map[kind].fields.items():
            if set(field.args) & REQUIRED or kind == "Query" or f"{kind}.{name}" in ABSENT:
                continue
            given = '(specs: [{keys: ["loss"]}])' if "specs" in field.args else ""
            found = _asked(stored, kind, _field(kind, name, given))
            if found is None or found in ({}, [], ""):
                empty.append(f"{kind}.{name}")
    assert empty == []


def test_every_route_gives_what_was_stored_or_says_that_there_is_nothing(stored: Client) -> None:
    def places(route: Route, known: bool) -> dict[str, str]:
        version = next(one.stem for one in (stored.root.path / "wandb/artifacts/versions").glob("*.json"))
        manifest = next(one.name for one in (stored.root.path / "wandb/artifacts/manifests").glob("*.json"))
        is_file = route.path.startswith("/files")
        right = {
            "entity": "local", "project": "mine", "run": "run0", "sweep": stored.http.sweep,  # type: ignore[attr-defined]
            "region": "local", "digest": DIGEST, "artifact": version,
            "path": "c.txt" if is_file else f"{version}/{DIGEST}/a.txt",
            "name": manifest if "manifests" in route.path else "a.txt",
        }  # fmt: skip
        wrong = {"project": "nobody", "run": "nobody", "sweep": "nobody", "path": "nobody", "digest": "0" * 32}
        return right if known else right | wrong | {"name": "nobody-nobody.json"}

    routes = [route for route in stored.endpoints[0].routes() if "GET" in (route.methods or {"GET"})]
    assert len(routes) == 8
    for route in routes:
        for known in (True, False):
            parts = places(route, known)
            path = route.path.replace(":path", "").format(**parts)
            answer = stored.http.get(path, follow_redirects=False)
            if known:
                assert answer.status_code in (200, 303), path
                if answer.status_code == 200:
                    wanted = CONTENT if "manifests" not in path else json.dumps(MANIFEST).encode()
                    assert answer.content == wanted, path
                else:
                    assert answer.headers["location"] != "/", path
            else:
                assert answer.status_code == 404, path
                assert answer.json()["errors"][0]["message"], path


@pytest.mark.parametrize("state", ["pending", "paused", "finished", 3])
def test_a_run_that_is_made_in_another_state_is_refused(stored: Client, state: object) -> None:
    query = "mutation ($input: J) { upsertBucket(input: $input) { bucket { state } } }"
    asked = {"query": query, "variables": {"input": {"name": "r", "modelName": "p", "state": state}}}
    (error,) = stored.http.post("/graphql", json=asked).json()["errors"]
    assert "a run is running here as soon as it is made, got the state" in error["message"]


def test_the_features_that_the_server_declares_are_the_clients(stored: Client) -> None:
    kinds = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="needs the W&B client")
    answer = stored.http.post("/graphql", json={"query": "{ serverInfo { features { name isEnabled } } }"}).json()
    features = answer["data"]["serverInfo"]["features"]
    assert features
    assert {one["name"] for one in features} <= set(kinds.ServerFeature.keys())


def test_a_file_outside_the_folder_of_its_run_is_refused(stored: Client) -> None:
    answer = stored.http.put("/files/local/mine/run0/upload/a/..%2F..%2F..%2Fx", content=CONTENT)
    assert answer.status_code in (400, 404)
    assert not list(stored.root.path.rglob("x"))


def test_a_project_is_unknown_until_it_has_a_run_or_a_sweep_or_was_made(client: Client) -> None:
    def known(name: str) -> bool:
        query = "query ($n: S) { project(name: $n) { id } model(name: $n) { id } }"
        answer = client.http.post("/graphql", json={"query": query, "variables": {"n": name}}).json()["data"]
        assert bool(answer["project"]) == bool(answer["model"])
        return bool(answer["project"])

    assert not known("mine")
    client.sweep()
    assert known("mine")
    client.ask("UpsertBucket", name="run0", project="logged", config="{}")
    assert known("logged")
    made = {"query": 'mutation { upsertModel(input: {name: "made", entityName: "local"}) { inserted } }'}
    assert client.http.post("/graphql", json=made).json()["data"]["upsertModel"]["inserted"]
    assert known("made")
    assert not known("mad")
