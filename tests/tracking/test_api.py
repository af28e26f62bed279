"""What `wandb.Api` and artifacts ask for, without a client."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import graphql
import pytest

from prunegpt.root import Root
from prunegpt.tracking.endpoint.filters import matches, ordered
from prunegpt.tracking.endpoint.graphql import schema
from prunegpt.tracking.endpoint.intake import Rejected
from tests.tracking.endpoint_client import GRID, Client


def asked(client: Client, query: str, **variables: Any) -> Any:
    answer = client.http.post("/graphql", json={"query": query, "variables": variables}).json()
    assert not answer.get("errors"), answer["errors"]
    return answer["data"]


RUNS = (
    'query ($filters: JSONString, $order: String) { project(name: "mine") { runs(filters: $filters, order: $order) { '
    "edges { node { name state config summaryMetrics tags history(samples: 10) } } } } }"
)


def test_runs_are_found_by_what_they_are(client: Client) -> None:
    for number in range(3):
        config = json.dumps({"lr": {"value": number / 10}})
        client.ask("UpsertBucket", name=f"run{number}", project="mine", config=config, tags=["t"] if number else [])
        summary = {"wandb-summary.json": {"offset": 0, "content": [json.dumps({"loss": 3.0 - number})]}}
        client.stream(f"run{number}", [{"_step": 0, "loss": 3.0 - number}], files=summary, complete=number > 0)

    def found(filters: Any, order: str = "") -> list[str]:
        edges = asked(client, RUNS, filters=json.dumps(filters), order=order)["project"]["runs"]["edges"]
        return [edge["node"]["name"] for edge in edges]

    assert found({}) == ["run0", "run1", "run2"]
    assert found({}, "+summary_metrics.loss") == ["run2", "run1", "run0"]
    assert found({"config.lr": {"$gt": 0.05}, "state": "finished"}) == ["run1", "run2"]
    assert found({"$or": [{"tags": "t", "config.lr.value": 0.1}, {"displayName": "run0"}]}) == ["run0", "run1"]
    node = asked(client, RUNS, filters="{}")["project"]["runs"]["edges"][1]["node"]
    assert json.loads(node["config"])["lr"] == {"value": 0.1}
    assert json.loads(node["summaryMetrics"]) == {"loss": 2.0}
    assert [json.loads(row) for row in node["history"]] == [{"_step": 0, "loss": 2.0}]


def test_the_keys_of_a_history_have_dotted_names_and_last_values(client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    client.stream("run0", [{"_step": step, "acc": {"top1": step / 2}} for step in range(2)])
    found = asked(client, '{ project(name: "mine") { run(name: "run0") { historyKeys } } }')["project"]["run"]
    assert found["historyKeys"]["lastStep"] == 1
    assert found["historyKeys"]["keys"]["acc.top1"]["previousValue"] == 0.5


def test_a_file_is_found_by_its_name_however_it_is_written(client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    client.http.put("/files/local/mine/run0/upload/a%20b.txt", content=b"content")
    files = "files(names: $n) { edges { node { url } } }"
    query = 'query ($n: [S]) { project(name: "mine") { run(name: "run0") { ' + files + " } } }"
    for name in ("a b.txt", "./a b.txt"):
        (edge,) = asked(client, query, n=[name])["project"]["run"]["files"]["edges"]
        assert client.http.get(edge["node"]["url"]).content == b"content"


SAMPLED = 'query ($specs: [J]) { project(name: "mine") { run(name: "run0") { sampledHistory(specs: $specs) } } }'


@pytest.mark.parametrize("first", [0, 4])
def test_pages_of_a_history_have_each_row_once_as_clients_old_and_new_ask_for_them(client: Client, first: int) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    client.stream("run0", [{"_step": step, "loss": float(step)} for step in range(10)])

    def page(low: int, high: int, samples: int) -> list[float]:
        spec = json.dumps({"keys": ["loss"], "minStep": low, "maxStep": high, "samples": samples})
        return [row["loss"] for row in asked(client, SAMPLED, specs=[spec])["project"]["run"]["sampledHistory"][0]]

    wanted = [float(step) for step in range(first, 10)]
    assert page(first, 9, 10 - first) == wanted, "of the last step, as many as there are"
    older = [row for low in range(first, 10, 3) for row in page(low, min(low + 3, 10), 3)]
    assert older == wanted


@pytest.mark.parametrize(
    ("query", "right"),
    [
        ({"state": {"$in": ["finished", "running"]}}, True),
        ({"state": {"$nin": ["finished"]}}, False),
        ({"config.net.width": {"$gte": 3}}, True),
        ({"config.absent": {"$exists": False}}, True),
        ({"summary_metrics.eval/loss": {"$lt": 1}}, True),
        ({"summary_metrics.eval/loss": {"$lt": "text"}}, False),
        ({"display_name": {"$regex": "^fir"}}, True),
        ({"tags": {"$in": ["a"]}}, True),
        ({"$not": {"state": "finished"}}, False),
        ({"$nor": [{"state": "running"}]}, True),
    ],
)
def test_a_filter_means_what_it_means_to_mongodb(query: Any, right: bool) -> None:
    run = {
        "state": "finished",
        "display_name": "first",
        "tags": ["a", "b"],
        "config": {"net": {"width": 3}},
        "summary_metrics": {"eval/loss": 0.5},
    }
    assert matches(run, query) is right


def test_an_unknown_operator_is_refused_and_missing_values_come_last() -> None:
    with pytest.raises(Rejected, match=r"filters here know .*, got \$where"):
        matches({}, {"state": {"$where": "1"}})
    runs = [{"config": {"lr": value}} for value in (None, 1, 2)]
    assert [run["config"]["lr"] for run in ordered(runs, "-config.lr")] == [2, 1, None]


def test_a_field_that_is_not_in_the_schema_is_named(client: Client) -> None:
    answer = client.http.post("/graphql", json={"query": "mutation Rewind { rewindRun(input: {}) { id } }"}).json()
    assert "no operation 'Rewind': Cannot query field 'rewindRun' on type 'Mutation'" in answer["errors"][0]["message"]
    answer = client.http.post("/graphql", json={"query": '{ project(name: "a", of: 1) { id } }'}).json()
    assert "Unknown argument 'of'" in answer["errors"][0]["message"]
    assert asked(client, '{ __type(name: "ServerSettings") { fields { name } } }')["__type"]["fields"]


def test_every_field_of_the_schema_that_a_run_has_is_answered(client: Client) -> None:
    """Generated over the schema: no resolver is missing, and none fails."""
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    client.stream("run0", [{"_step": 0, "loss": 1.0}])
    kinds = schema().type_map
    run, project = kinds["Run"], kinds["Project"]
    assert isinstance(run, graphql.GraphQLObjectType)
    assert isinstance(project, graphql.GraphQLObjectType)
    for kind, place in ((project, "{}"), (run, '{{ run(name: "run0") {} }}')):
        assert len(kind.fields) > 20
        for name, field in kind.fields.items():
            inner = "" if str(field.type) == "JSON" else " { __typename }"
            asked(client, '{ project(name: "mine") ' + place.format("{ " + name + inner + " }") + " }")


CREATE = "mutation ($input: CreateArtifactInput!) { createArtifact(input: $input) { artifact { id state } } }"
MANIFEST = (
    "mutation ($input: J) { createArtifactManifest(input: $input) { artifactManifest { id file { uploadUrl } } } }"
)
FILES = "mutation ($input: J) { createArtifactFiles(input: $input) { files { edges { node { uploadUrl } } } } }"
COMMIT = "mutation ($input: J) { commitArtifact(input: $input) { artifact { state versionIndex } } }"
ARTIFACT = (
    'query ($name: String) { project(name: "mine") { artifact(name: $name) { versionIndex digest aliases { alias } '
    "currentManifest { file { directUrl } } files { edges { node { name directUrl } } } } } }"
)


def logged(
    client: Client, content: bytes, *aliases: str, run: str = "run0", more: Mapping[str, Any] | None = None
) -> Any:
    """Logs an artifact of one file as a client does; what its commit answers.

    Args:
        more: further entries of its manifest.
    """
    digest = b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    about = {"entityName": "local", "projectName": "mine", "runName": run, "artifactTypeName": "dataset"}
    given = {
        **about,
        "artifactCollectionName": "data",
        "digest": digest,
        "aliases": [{"alias": one} for one in aliases],
    }
    made = asked(client, CREATE, input={**given, "tags": [{"tagName": "given"}]})["createArtifact"]["artifact"]
    if made["state"] == "COMMITTED":
        return made
    manifest = {"version": 1, "contents": {"a.txt": {"digest": digest, "size": len(content)}, **(more or {})}}
    sent = asked(client, MANIFEST, input={"artifactID": made["id"], "name": "m", "digest": "x"})[
        "createArtifactManifest"
    ]
    address = sent["artifactManifest"]["file"]["uploadUrl"]
    assert client.http.put(address, content=json.dumps(manifest)).status_code == 200
    specs = [{"artifactID": made["id"], "name": "a.txt", "md5": digest}]
    (edge,) = asked(client, FILES, input={"artifactFiles": specs})["createArtifactFiles"]["files"]["edges"]
    if edge["node"]["uploadUrl"]:
        assert client.http.put(edge["node"]["uploadUrl"], content=b"other").status_code == 400, "not what was announced"
        assert client.http.put(edge["node"]["uploadUrl"], content=content).status_code == 200
    return asked(client, COMMIT, input={"artifactID": made["id"]})["commitArtifact"]["artifact"]


def test_an_artifact_comes_back_as_it_was_logged_also_after_a_restart(client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    assert logged(client, b"one", "best") == {"state": "COMMITTED", "versionIndex": 0}
    assert logged(client, b"two", "best") == {"state": "COMMITTED", "versionIndex": 1}
    assert logged(client, b"one")["state"] == "COMMITTED", "the same content is the same version"
    again = client.after_restart()
    for name, number, content in (("data:v0", 0, b"one"), ("data:best", 1, b"two"), ("data:latest", 0, b"one")):
        found = asked(again, ARTIFACT, name=name)["project"]["artifact"]
        assert found["versionIndex"] == number
        (edge,) = found["files"]["edges"]
        assert again.http.get(edge["node"]["directUrl"]).content == content
        assert "contents" in again.http.get(found["currentManifest"]["file"]["directUrl"]).json()
    assert asked(again, ARTIFACT, name="data:v7")["project"]["artifact"] is None


VERSIONS = (
    'query ($order: String) { project(name: "mine") { artifactType(name: "dataset") { artifactCollection(name: "data") '
    "{ artifacts(order: $order) { edges { node { id versionIndex } } } } } } }"
)
DELETE = "mutation ($input: J) { deleteArtifact(input: $input) { success } }"


def test_versions_come_in_the_order_that_is_asked_for_and_one_with_aliases_is_kept(client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    logged(client, b"one", "best")
    logged(client, b"two")

    def found(order: str) -> list[dict[str, Any]]:
        kind = asked(client, VERSIONS, order=order)["project"]["artifactType"]
        return [edge["node"] for edge in kind["artifactCollection"]["artifacts"]["edges"]]

    for order, numbers in (("", [1, 0]), ("+version_index", [0, 1]), ("-version_index", [1, 0])):
        assert [node["versionIndex"] for node in found(order)] == numbers
    given = {"artifactID": found("+version_index")[0]["id"]}
    answer = client.http.post("/graphql", json={"query": DELETE, "variables": {"input": given}}).json()
    assert "delete_aliases=True only; data:v0 has best" in answer["errors"][0]["message"]
    assert asked(client, DELETE, input={**given, "deleteAliases": True})["deleteArtifact"]["success"]
    assert [node["versionIndex"] for node in found("")] == [1]


def test_the_tags_of_an_artifact_are_kept_and_changed(client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    logged(client, b"one")
    tagged = 'query { project(name: "mine") { artifact(name: "data") { id tags { name } } } }'
    update = "mutation ($input: J) { updateArtifact(input: $input) { artifact { tags { name } } } }"
    found = asked(client, tagged)["project"]["artifact"]
    assert found["tags"] == [{"name": "given"}]
    changed = {"tagsToAdd": [{"tagName": "new"}], "tagsToDelete": [{"tagName": "given"}]}
    made = asked(client, update, input={"artifactID": found["id"], **changed})["updateArtifact"]["artifact"]
    assert made["tags"] == [{"name": "new"}]


def test_an_artifact_without_its_manifest_is_not_committed(client: Client) -> None:
    about = {"entityName": "local", "projectName": "mine", "artifactTypeName": "t", "artifactCollectionName": "c"}
    made = asked(client, CREATE, input={**about, "digest": "d"})["createArtifact"]["artifact"]
    answer = client.http.post("/graphql", json={"query": COMMIT, "variables": {"input": {"artifactID": made["id"]}}})
    assert answer.status_code == 400
    assert "its manifest was not sent" in answer.json()["errors"][0]["message"]


def test_references_are_files_of_an_artifact(client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    elsewhere = {"big.bin": {"digest": "etag", "ref": "https://example.org/big.bin", "size": 7}}
    assert logged(client, b"one", more=elsewhere)["state"] == "COMMITTED"
    (_, edge) = asked(client, ARTIFACT, name="data")["project"]["artifact"]["files"]["edges"]
    assert edge["node"] == {"name": "big.bin", "directUrl": "https://example.org/big.bin"}


def test_an_artifact_of_which_a_file_was_not_sent_is_not_committed(client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    absent = {name: {"digest": b64encode(bytes(16)).decode(), "size": 3} for name in ("b.txt", "c.txt")}
    with pytest.raises(AssertionError, match=r"'b.txt' was not sent, nor were 1 others. Log it again."):
        logged(client, b"one", more=absent)


def parts(client: Client, kind: str, *names: str, **more: Any) -> Any:
    """Logs a version of which each file comes with a manifest of its own; its names of files."""
    about = {"entityName": "local", "projectName": "mine", "artifactTypeName": "dataset", **more}
    for name in names:
        digest = hashlib.md5(name.encode(), usedforsecurity=False)
        given = {**about, "artifactCollectionName": "data", "digest": digest.hexdigest()}
        made = asked(client, CREATE, input=given)["createArtifact"]["artifact"]
        base = asked(client, '{ project(name: "mine") { artifact(name: "data") { id } } }')["project"]["artifact"]
        given = {"artifactID": made["id"], "type": kind, "baseArtifactID": base and base["id"]}
        manifest = asked(client, MANIFEST, input=given)["createArtifactManifest"]["artifactManifest"]
        specs = [{"artifactID": made["id"], "name": name, "md5": b64encode(digest.digest()).decode()}]
        (edge,) = asked(client, FILES, input={"artifactFiles": specs})["createArtifactFiles"]["files"]["edges"]
        assert client.http.put(edge["node"]["uploadUrl"], content=name.encode()).status_code == 200
        update = (
            "mutation ($input: J) { updateArtifactManifest(input: $input) { artifactManifest { file { uploadUrl } } } }"
        )
        answer = asked(client, update, input={"artifactManifestID": manifest["id"]})["updateArtifactManifest"]
        content = {name: {"digest": specs[0]["md5"], "size": len(name)}}
        client.http.put(answer["artifactManifest"]["file"]["uploadUrl"], content=json.dumps({"contents": content}))
    assert asked(client, COMMIT, input={"artifactID": made["id"]})["commitArtifact"]["artifact"]["state"] == "COMMITTED"
    found = asked(client, ARTIFACT, name="data")["project"]["artifact"]
    return [edge["node"]["name"] for edge in found["files"]["edges"]]


def test_what_is_added_to_a_version_comes_to_what_it_has(client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    logged(client, b"one")
    assert parts(client, "INCREMENTAL", "b.txt") == ["a.txt", "b.txt"]
    assert parts(client, "INCREMENTAL", "c.txt") == ["a.txt", "b.txt", "c.txt"]


def test_a_version_that_several_make_together_has_what_each_has_sent(client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    logged(client, b"one")
    assert parts(client, "PATCH", "b.txt", "c.txt", distributedID="group") == ["b.txt", "c.txt"]


def test_a_file_is_fetched_by_every_address_that_clients_make(client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", config="{}")
    logged(client, b"one")
    found = asked(client, '{ project(name: "mine") { artifact(name: "data") { id } } }')["project"]["artifact"]
    digest = hashlib.md5(b"one", usedforsecurity=False).hexdigest()
    for path in (found["id"], f"mine/data/{found['id']}"):
        for name in ("", "/a.txt", "/a/b.txt"):
            assert client.http.get(f"/artifactsV2/default/local/{path}/{digest}{name}").content == b"one"
    assert client.http.get(f"/artifactsV2/default/local/other/{digest}").status_code == 404


def test_a_run_that_logs_what_is_there_has_logged_it_too(client: Client) -> None:
    for name in ("run0", "run1"):
        client.ask("UpsertBucket", name=name, project="mine", config="{}")
        logged(client, b"one", run=name)
    query = '{{ project(name: "mine") {{ run(name: "{}") {{ outputArtifacts {{ totalCount }} }} }} }}'
    for name in ("run0", "run1"):
        assert asked(client, query.format(name))["project"]["run"]["outputArtifacts"]["totalCount"] == 1


def test_every_project_is_listed(client: Client) -> None:
    for project in ("col 2", "col_2"):
        client.ask("UpsertBucket", name="run0", project=project, config="{}")
    edges = asked(client, "{ projects { edges { node { name } } } }")["projects"]["edges"]
    assert sorted(edge["node"]["name"] for edge in edges) == ["col 2", "col_2"]


def test_artifacts_have_a_bound_in_all_and_what_is_deleted_makes_room(tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    client = Client(root, artifacts=100)
    try:
        client.ask("UpsertBucket", name="run0", project="mine", config="{}")
        first = logged(client, b"x" * 60, "kept")
        assert logged(client, b"x" * 60)["state"] == first["state"], "the same content takes no more room"
        with pytest.raises(AssertionError):
            logged(client, b"y" * 60)
        refused = root.attempt("wandb-mine", "run0", 1) / "log.txt"
        assert "data was not kept: the artifacts of a root may take 100 bytes here, but" in refused.read_text()
        assert "--artifact-limit" in refused.read_text()
        found = asked(client, '{ project(name: "mine") { artifact(name: "data:v0") { id } } }')["project"]["artifact"]
        assert asked(client, DELETE, input={"artifactID": found["id"], "deleteAliases": True})["deleteArtifact"]
        assert logged(client, b"y" * 60)["state"] == "COMMITTED"
        assert len(list((root.path / "wandb" / "artifacts" / "files").rglob("*/*"))) == 1
    finally:
        client.endpoints[0].close()


def test_a_sweep_is_updated_and_prior_runs_are_refused(client: Client) -> None:
    name = client.sweep()
    update = "mutation ($input: J) { upsertSweep(input: $input) { sweep { config } } }"
    config = json.dumps({**GRID, "description": "new"})
    made = asked(client, update, input={"id": name, "config": config})["upsertSweep"]["sweep"]
    assert json.loads(made["config"])["description"] == "new"
    prior = {"config": json.dumps(GRID), "priorRunsFilters": json.dumps({"$or": [{"name": "run0"}]})}
    answer = client.http.post("/graphql", json={"query": update, "variables": {"input": prior}}).json()
    assert "takes no earlier runs" in answer["errors"][0]["message"]
    agent = client.ask("CreateAgent", sweep=name, host="h")["createAgent"]["agent"]["id"]
    client.heartbeat(agent)
    other = {"id": name, "config": json.dumps({**GRID, "parameters": {"lr": {"values": [1, 2]}}})}
    answer = client.http.post("/graphql", json={"query": update, "variables": {"input": other}}).json()
    assert "parameters of a sweep that has runs stay as they are" in answer["errors"][0]["message"]
