"""Whatever is sent over the W&B protocol, and however it is packed: an answer with a rule, and never a 500.

What is sent is made from the schema, the input models and the routes: a new one is attacked too.
"""

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.testclient import TestClient

from prunegpt.root import Root
from prunegpt.spec.wandb_parameters import KEYS
from prunegpt.store import Store
from prunegpt.sweep.recovery import recover
from prunegpt.tracking.endpoint import graphql as operations
from prunegpt.tracking.endpoint.app import WandbServer
from prunegpt.tracking.endpoint.runs import HISTORY, OUTPUT, SUMMARY

NESTED: Any = 1
for _ in range(200):
    NESTED = [NESTED]
NUMBERS = st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 1e308, -1e308, 0.5, 1e-320])
TEXTS = ["", "NaN", "\0", "\ud800", "../x", "a" * 300]
ODD = st.sampled_from([float("nan"), float("inf"), -float("inf"), True, None, *TEXTS])
SCALARS = st.one_of(NUMBERS, ODD, st.text(max_size=5))
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
VALUES = st.one_of(SCALARS, st.just(NESTED), TREES)
NAMED = st.sampled_from(["abc123", "local", "mine", "SWEEP", "AGENT", "RUNNING", "{}", "[]", '{"a": {"value": 1}}'])
INPUT = [field.alias or name for name, field in operations.FieldArguments.model_fields.items()]


PARAMETER = st.fixed_dictionaries(
    {},
    optional={
        "distribution": st.sampled_from([*KEYS, 7]),
        "value": VALUES,
        **dict.fromkeys(("values", "probabilities"), st.lists(VALUES, max_size=3)),
        **dict.fromkeys(("min", "max", "q", "mu", "sigma", "a", "b"), NUMBERS),
    },
)
SOUND = st.sampled_from(
    [{"values": [1, 2]}, {"min": 0.0, "max": 1.0}, {"distribution": "normal"}, {"distribution": "beta", "a": 2}]
)
METRIC = st.fixed_dictionaries(
    {"name": st.just("a")}, optional={"goal": st.sampled_from(["minimize", "maximize", 3]), "target": VALUES}
)
STOP = st.fixed_dictionaries(
    {"type": st.just("hyperband")},
    optional={**dict.fromkeys(("min_iter", "max_iter", "s", "eta"), NUMBERS), "strict": VALUES},
)
METHOD = st.sampled_from(["grid", "random", "bayes"])
CONFIG = st.one_of(
    st.fixed_dictionaries(
        {"method": METHOD, "parameters": st.fixed_dictionaries({"a": SOUND})},
        optional={
            "metric": METRIC | VALUES,
            "run_cap": NUMBERS,
            "early_terminate": STOP | VALUES,
            **dict.fromkeys(("program", "command", "name", "description"), VALUES),
        },
    ),
    st.fixed_dictionaries(
        {
            "method": METHOD,
            "metric": st.just({"name": "a"}),
            "parameters": st.dictionaries(st.sampled_from(["a", "b", "0"]), SOUND | PARAMETER, max_size=2),
        }
    ),
)
ROW = st.fixed_dictionaries(
    {"loss": NUMBERS},
    optional={
        **dict.fromkeys(("_step", "_timestamp", "epoch", "tokens", "global_step"), NUMBERS),
        **dict.fromkeys(("_runtime", "sparsity", "perplexity", "eval/loss", "a.b", "\0"), VALUES),
    },
)


class Attacked:
    """An endpoint of a root, with a sweep and an agent whose names stand in for SWEEP and AGENT."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.endpoint = WandbServer(root)
        self.http = TestClient(Starlette(routes=self.endpoint.routes()), raise_server_exceptions=False)
        self.sweep = self.begun({"method": "random", "parameters": {"a": {"min": 0.0, "max": 1.0}}}) or ""
        self.agent = self.asked("createAgent", {"sweep": self.sweep})["agent"]["id"]

    def asked(self, operation: str, given: Any) -> Any:
        wanted = {"upsertSweep": "sweep { name }", "createAgent": "agent { id }", "agentHeartbeat": "commands"}
        query = f"mutation ($it: JSON) {{ it: {operation}(input: $it) {{ {wanted[operation]} }} }}"
        return (self.sent("/graphql", {"query": query, "variables": {"it": given}}) or {}).get("it")

    def begun(self, config: Any) -> str | None:
        made = self.asked("upsertSweep", {"config": json.dumps(config)})
        return made["sweep"]["name"] if made else None

    def sent(self, path: str, body: Any) -> Any:
        """Sends JSON; what stands under data."""
        text = json.dumps(body)
        for name, real in (("SWEEP", getattr(self, "sweep", "")), ("AGENT", getattr(self, "agent", ""))):
            text = text.replace(f'"{name}"', f'"{real}"')
        return self.posted(path, text.encode())

    def posted(self, path: str, body: bytes, method: str = "POST", **headers: str) -> Any:
        answer = self.http.request(method, path, content=body, headers=headers, follow_redirects=False)
        assert answer.status_code < 500, (path, body[:500], answer.text)
        if answer.status_code >= 400 and "json" in answer.headers.get("content-type", ""):
            assert len(answer.json()["errors"][0]["message"]) > 10
        try:
            return answer.json().get("data")
        except ValueError:
            return None

    def can_go_on(self) -> None:
        """A coordinator that starts now is not harmed by what was taken in."""
        with Store.open(self.root) as store:
            for row in store.running_attempts():
                (self.root.path / row.folder / "outside.json").unlink(missing_ok=True)
            recover(self.root, store)
            assert store.running_attempts() == []


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    found = Attacked(Root(tmp_path_factory.mktemp("attacked") / "runs"))
    yield found
    found.can_go_on()
    found.endpoint.close()


INNER = {  # what is asked of a field's answer, where it takes arguments again
    "Project": " { id name entity { name } sweep(sweepName: $name) { state } bucket(name: $name) { config } "
    "runs(filters: $name, order: $name, first: $name) { edges { node { name } } } artifact(name: $name) { id } }",
}


def argued(name: str, field: Any) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """A query of one field with arguments of its schema, as the query and its variables."""
    kind = "mutation" if "input" in field.args else "query"
    given = st.fixed_dictionaries({}, optional=dict.fromkeys(INPUT, NAMED | VALUES)) | VALUES
    values = {argument: given if argument == "input" else NAMED | VALUES for argument in field.args}
    declared = ", ".join(f"${argument}: JSON" for argument in values)
    taken = ", ".join(f"{argument}: ${argument}" for argument in values)
    inner = INNER.get(str(field.type), " { __typename }") if str(field.type) != "JSON" else ""
    query = f"{kind}{f' ({declared})' if declared else ''} {{ {name}{f'({taken})' if taken else ''}{inner} }}"
    return st.tuples(st.just(query), st.fixed_dictionaries({}, optional=values))


SCHEMA = operations.schema()
assert SCHEMA.query_type is not None
assert SCHEMA.mutation_type is not None
FIELDS = {**SCHEMA.query_type.fields, **SCHEMA.mutation_type.fields}
LINES = st.fixed_dictionaries(
    {}, optional={"offset": NUMBERS, "content": st.lists(ROW.map(json.dumps), max_size=3) | VALUES}
)
STREAM = st.fixed_dictionaries(
    {},
    optional={
        "files": st.dictionaries(st.sampled_from([HISTORY, SUMMARY, OUTPUT, "other"]), LINES | VALUES) | VALUES,
        "complete": st.booleans() | VALUES,
        "exitcode": NUMBERS | VALUES,
    },
)
ODD_QUERIES = [
    "{" * 3000,
    "{a" * 400,
    "{ viewer { " + "a { " * 200,
    "query ($a: [[[[[Int!]!]!]!]!]!) { viewer }",
    "fragment F on Query { ...F } { ...F }",
    "{ model { ...F } } fragment F on Project { ...F }",
    "query A { viewer } query B { viewer }",
    "subscription { a }",
    "{ __schema { types { name } } }",
]
ODD_BODIES = [
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5000,
    b'{"query": "\xff"}',
    b'"\\ud800"',
    b"null",
    b"",
    b"{}",
    b'{"query": 1}',
    b'{"query": "{ viewer }", "variables": [1]}',
    b'{"query": "{ viewer }", "operationName": {}}',
    gzip.compress(b"{}")[:-3],
]
QUERIES = st.text(max_size=30) | st.sampled_from(ODD_QUERIES)
BYTES = st.binary(max_size=40) | st.sampled_from(ODD_BODIES)
PATHS = ["/graphql", "/files/local/mine/abc123/file_stream", "/files/local/mine/abc123/upload/file.txt"]
NAMES = st.one_of(
    st.text(min_size=1, max_size=5),
    st.sampled_from(["%00", "..", "%2e%2e", "a" * 300, "%ff", "file.txt/below", "abc123", "%f0%90%80", "."]),
)


def attacks(attacked: Attacked, count: int) -> dict[str, Any]:
    """Name -> a generated attack."""
    many = settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )

    def operation(name: str) -> Any:
        @many
        @given(argued(name, FIELDS[name]))
        def attack(asked: tuple[str, dict[str, Any]]) -> None:
            attacked.sent("/graphql", {"query": asked[0], "variables": asked[1]})

        return attack

    @many
    @given(CONFIG)
    def configs(config: Any) -> None:
        name = attacked.begun(config)
        if name:
            agent = attacked.asked("createAgent", {"sweep": name})["agent"]["id"]
            alive: dict[str, bool] = {}
            for _ in range(3):
                told = attacked.asked("agentHeartbeat", {"id": agent, "runState": json.dumps(alive)})
                alive = {one["run_id"]: True for one in json.loads(told["commands"]) if one["type"] == "run"}
                for run in alive:
                    rows = {HISTORY: {"offset": 0, "content": ['{"a": 1.0}', '{"a": 2.0}']}}
                    attacked.sent(f"/files/local/prunegpt/{run}/file_stream", {"files": rows})

    @many
    @given(STREAM)
    def streams(body: Any) -> None:
        attacked.sent("/files/local/mine/abc123/file_stream", body)

    @many
    @given(st.lists(ROW, min_size=1, max_size=2), st.integers(0, 100_000))
    def rows(rows: list[Any], run: int) -> None:
        lines = {"offset": 0, "content": [json.dumps(row) for row in rows]}
        attacked.sent(f"/files/local/mine/{run}/file_stream", {"files": {HISTORY: lines}})

    @many
    @given(QUERIES, VALUES, VALUES)
    def queries(query: str, variables: Any, name: Any) -> None:
        attacked.sent("/graphql", {"query": query, "variables": variables, "operationName": name})
        attacked.sent("/graphql", {"query": query})

    @many
    @given(st.sampled_from(PATHS), BYTES, st.sampled_from(["", "gzip", "br", "deflate, gzip"]), st.booleans())
    def bodies(path: str, body: bytes, encoding: str, packed: bool) -> None:
        sent = gzip.compress(body) if packed and encoding == "gzip" else body
        attacked.posted(path, sent, **{"content-encoding": encoding})

    @many
    @given(st.sampled_from(attacked.endpoint.routes()), st.lists(NAMES, min_size=5, max_size=5), BYTES)
    def paths(route: Any, names: list[str], body: bytes) -> None:
        taken = iter(names)
        path = re.sub(r"\{[^}]*\}", lambda _: re.sub(r"[?#/\s]", "_", next(taken)), route.path)
        if path.isprintable():
            attacked.posted(path, body, method=sorted(route.methods - {"HEAD"})[0])

    whole = {"configs": configs, "streams": streams, "rows": rows, "queries": queries, "bodies": bodies, "paths": paths}
    return {**{name: operation(name) for name in FIELDS}, **whole}


KINDS = [*FIELDS, "configs", "streams", "rows", "queries", "bodies", "paths"]


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_requests_are_refused_with_a_rule(attacked: Attacked, kind: str) -> None:
    attacks(attacked, 25)[kind]()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_malformed_requests_are_refused_with_a_rule(attacked: Attacked, kind: str) -> None:
    attacks(attacked, 400)[kind]()
