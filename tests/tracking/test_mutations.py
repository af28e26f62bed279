"""What the installed client's mutations say is read back, or refused, or named here: nothing is dropped in silence."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import graphql
import pytest

from prunegpt.tracking.endpoint.graphql import schema
from tests.tracking.endpoint_client import GRID, Client

_BEGINS = re.compile(rb"mutation\s+\w+\s*[({]")
_BRACKETS = re.compile(rb"[{}]")
_LONGEST = 20_000  # bytes of an operation

ADDRESSES = {
    "artifactCollectionName",
    "artifactCollectionNames",
    "clientID",
    "entityName",
    "projectName",
    "modelName",
    "runName",
    "artifactID",
    "artifactManifestID",
    "id",
    "name",
}
WITHOUT_EFFECT = {
    "artifactTypeName": "an address, of the collection's type",
    "baseArtifactID": "tested by artifacts that are made of parts",
    "digest": "what an artifact is found by when it is logged again",
    "digestAlgorithm": "there is one",
    "sequenceClientID": "clients make it up for a collection, which has its name",
    "enableDigestDeduplication": "tested by artifacts that are logged again",
    "type": "tested by artifacts that are made of parts",
    "waitDuration": "clients themselves wait so long between two alerts",
    "debug": "of their own developers",
    "metrics": "agents send none",
    "runState": "tested by agents",
    "files": "tested by files that are uploaded",
    "deleteAliases": "tested by artifacts that are deleted",
    "sweep": "tested by runs of agents",
    "commit": "in the run's wandb-metadata.json, which is kept",
    "jobRepo": "in the run's wandb-metadata.json, which is kept",
    "tagsToDelete": "tested by tags that are changed",
    "usedAs": "deprecated, and shown by nobody",
    "clientMutationId": "clients do not read it",
    "distributedID": "tested by artifacts that several make together",
}

SENT: dict[str, Any] = {
    "config": json.dumps({**GRID, "mark": {"value": "mark-config"}}),
    "summaryMetrics": json.dumps({"mark": "mark-summaryMetrics"}),
    "metadata": json.dumps({"mark": "mark-metadata"}),
    "priorRunsFilters": json.dumps({"name": "mark-priorRunsFilters"}),
    "artifactCollectionNames": ["mark-artifactCollectionNames"],
    "severity": "WARN",
    "historyStep": "2718281",
    "aliases": [{"alias": "mark-aliases"}],
    "tagsToAdd": [{"tagName": "mark-tagsToAdd"}],
    "ttlDurationSeconds": 60,
}


@cache
def sent_by_the_client() -> dict[str, set[str]]:
    """Mutation -> the names of what the installed client puts into its input, as far as its documents say."""
    wandb = pytest.importorskip("wandb", reason="needs the W&B client")
    home = Path(wandb.__file__).parent
    found = defaultdict(set)
    for file in (home / "bin" / "wandb-core", home):
        for path in [file] if file.is_file() else sorted(file.rglob("*.py")):
            for document in _documents(path.read_bytes()):
                for operation in document.definitions:
                    assert isinstance(operation, graphql.OperationDefinitionNode)
                    for field in operation.selection_set.selections:
                        assert isinstance(field, graphql.FieldNode)
                        values = [one.value for one in field.arguments]
                        keys = {
                            key.name.value
                            for one in values
                            if isinstance(one, graphql.ObjectValueNode)
                            for key in one.fields
                        }
                        found[field.name.value] |= keys
    return dict(found)


def _documents(data: bytes) -> Iterator[graphql.DocumentNode]:
    for begin in _BEGINS.finditer(data):
        depth = 0
        for bracket in _BRACKETS.finditer(data, begin.start(), begin.start() + _LONGEST):
            depth += 1 if bracket[0] == b"{" else -1
            if depth == 0 and data[bracket.end() :].lstrip()[:1] not in (b")", b","):
                try:
                    yield graphql.parse(
                        data[begin.start() : bracket.end()].decode("utf-8", "replace"), no_location=True
                    )
                except graphql.GraphQLError:
                    continue
                break


def _fields(kind: Any, depth: int) -> str:
    """A selection of all fields of a type, and of what they lead to; those that lead back are left out at the end."""
    found = []
    for name, field in kind.fields.items():
        inner = graphql.get_named_type(field.type)
        if not isinstance(inner, graphql.GraphQLObjectType):
            found.append(name)
        elif depth and name not in ("project", "user", "agents", "agent"):
            found.append(f"{name} {{ {_fields(inner, depth - 1)} }}")
    return " ".join(found) or "__typename"


def _inside(connection: str, fields: str) -> str:
    return f"{connection} {{ edges {{ node {{ {fields} }} }} }}"


def _readable(client: Client) -> str:
    """All that can be read of the project, with the log and the page of its run."""
    types = schema().type_map
    versions = _inside("artifacts", f"{_fields(types['Artifact'], 1)} {_inside('usedBy', 'name')}")
    parts = (
        _inside("runs", _fields(types["Run"], 1)),
        _inside("sweeps", f"{_fields(types['Sweep'], 0)} {_inside('agents', 'host')}"),
        _inside("artifactTypes", f"name {_inside('artifactCollections', f'name {versions}')}"),
    )
    query = '{ project(name: "mine", entityName: "local") { PART } }'
    answers = [client.http.post("/graphql", json={"query": query.replace("PART", part)}).json() for part in parts]
    assert not any(answer.get("errors") for answer in answers), answers
    shown = [path.read_text() for name in ("log.txt", "trial.json") for path in client.root.path.rglob(name)]
    return json.dumps(answers) + "".join(shown)


def _sent(mutation: str) -> set[str]:
    """What may be put into the input of a mutation of ours: by the client's documents, its types, or our schema."""
    kinds = pytest.importorskip("wandb.sdk.artifacts._generated", reason="needs the W&B client")
    name = f"{mutation[0].upper()}{mutation[1:]}Input"
    fields = getattr(getattr(kinds, name, None), "model_fields", {})
    declared = getattr(schema().type_map.get(name), "fields", {})
    return (
        {field.alias or key for key, field in fields.items()}
        | set(declared)
        | sent_by_the_client().get(mutation, set())
    )


MUTATIONS = sorted(schema().mutation_type.fields) if schema().mutation_type else []


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_a_mutation_says_is_read_back_refused_or_named(mutation: str, client: Client) -> None:
    client.ask("UpsertBucket", name="run0", project="mine", entity="local", config="{}")
    sweep = client.sweep()
    about = {"entityName": "local", "projectName": "mine", "runName": "run0", "modelName": "mine"}
    version = {
        "artifactTypeName": "dataset",
        "artifactCollectionName": "data",
        "digest": "d",
        "clientID": "mark-clientID",
    }

    def ask(asked: str, /, **given: Any) -> Any:
        kind = schema().mutation_type.fields[asked].type  # type: ignore[union-attr]
        query = f"mutation ($input: J) {{ {asked}(input: $input) {{ {_fields(graphql.get_named_type(kind), 1)} }} }}"
        return client.http.post("/graphql", json={"query": query, "variables": {"input": given}}).json()

    def committed(made: str) -> str:
        manifest = ask("createArtifactManifest", artifactID=made)["data"]["createArtifactManifest"]["artifactManifest"]
        client.http.put(f"/artifact-manifests/{manifest['id']}", content='{"contents": {}}')
        assert not ask("commitArtifact", artifactID=made).get("errors")
        return made

    made = committed(ask("createArtifact", **about, **version)["data"]["createArtifact"]["artifact"]["id"])
    missing = []
    for key in sorted(_sent(mutation) - ADDRESSES - set(WITHOUT_EFFECT)):
        base: dict[str, Any] = {**about, **({**version, "digest": key} if mutation == "createArtifact" else {})}
        base |= {"artifactID": made} if "artifactID" in _sent(mutation) else {}
        base |= {"sweep": sweep} if mutation == "createAgent" else {}
        base |= {"name": "run0"} if mutation == "upsertBucket" else {}
        base |= {"config": json.dumps(GRID)} if mutation == "upsertSweep" else {}
        value = SENT.get(key, f"mark-{key}")
        if key == "tags":
            value = ["mark-tags"] if mutation == "upsertBucket" else [{"tagName": "mark-tags"}]
        answer = ask(mutation, **{**base, key: value})
        if mutation == "createArtifact" and not answer.get("errors"):
            committed(answer["data"]["createArtifact"]["artifact"]["id"])
        if not answer.get("errors") and (
            value.lower() if key in ("severity", "historyStep") else f"mark-{key}"
        ) not in _readable(client):
            missing.append(key)
    assert missing == ([] if mutation != "deleteAliases" else ["aliases"])  # which are gone then
