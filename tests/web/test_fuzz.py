"""Whatever is asked, the answer is one that the reference describes, and never a 500."""

import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS, load_all_checks
from starlette.testclient import TestClient

import prunegpt.web.api  # noqa: F401
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.tracking.foreign import Keeper
from prunegpt.tracking.run_path import RunPath
from prunegpt.web.endpoint import ENDPOINTS, PREFIX, document
from tests.support.served import HEADERS, served
from tests.support.study import study

FUZZED = settings(
    deadline=None,
    max_examples=int(os.environ.get("PRUNEGPT_FUZZ", "25")),
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
ENTRIES = list(ENDPOINTS)
load_all_checks()
_WANTED = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
KNOWN = {"name": "study", "sweep": "study", "trial": "recovered", "table": "all", "figure": "pareto"}


LOGGED = {"sweep": "wandb-kd", "trial": "run1"}  # what entries of W&B runs know


@pytest.fixture(scope="module")
def address(kept: Root) -> Iterator[str]:
    with Store.open(kept) as store:
        run = Keeper(kept, store, RunPath("local", "kd", "run1"))
        run.add([{"_step": 0, "train/loss": 1.0}], 0)
        (run.folder / "files").mkdir(exist_ok=True)  # the module may be entered twice, and its root is one for all
        (run.folder / "files" / "a.txt").write_text("a")
    with served(kept) as address:
        yield address


@pytest.fixture(scope="module")
def api() -> Any:
    return schemathesis.openapi.from_dict(document())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.method} {entry.path}")
def test_answers_are_as_described(entry: Any, api: Any, address: str) -> None:
    operation = api[PREFIX + entry.path][entry.method]
    codes = set()
    known_of = {**KNOWN, **(LOGGED if entry.path.endswith(("/logged", "/file")) else {})}

    @FUZZED
    @given(case=operation.as_strategy(), known=st.booleans())
    def check(case: Any, known: bool) -> None:
        if known:  # else nearly all names would be unknown
            case.path_parameters = {
                name: known_of.get(name, value) for name, value in (case.path_parameters or {}).items()
            }
        if known and entry.path.endswith("/file"):
            case.query = {"name": "a.txt"}
        if known and "/panel" in entry.path and entry.method == "GET":
            case.query = {"y": "loss"} if not entry.path.endswith("s") else {}
        if known and entry.path.endswith("/groups"):
            case.query = {"by": "state"}
        if known and entry.path == "/compare":
            case.query = {**(case.query or {}), "trial": ["study/recovered", "study/going"]}
        if entry.method == "POST" and entry.path.endswith("actions"):
            case.path_parameters = dict.fromkeys(case.path_parameters, "none")  # nothing is started here
        case.headers = {**(case.headers or {}), **HEADERS}
        case.cookies = {}
        response = case.call(base_url=address)
        codes.add(response.status_code)
        case.validate_response(response, checks=[CHECKS.get_one(name) for name in _WANTED])

    check()
    assert 200 in codes or entry.path.endswith("/actions")


PARTS = st.one_of(
    st.sampled_from(["study", "recovered", "going", "..", ".", "%2e%2e", "<script>", "a b", "\x00", "é", "all", "-1"]),
    st.text(max_size=20),
)
VALUES = st.one_of(
    st.integers().map(str), st.text(max_size=30), st.sampled_from(["1e999", "nan", "*", "[", "[!]", "%"])
)
NAMES = st.sampled_from(["offset", "limit", "sort", "state", "q", "name", "axis", "points", "stage", "attempt", "tail",
                         "trial", "x"])  # fmt: skip


@FUZZED
@given(entry=st.sampled_from(ENTRIES), parts=st.lists(PARTS, min_size=3, max_size=3),
       query=st.lists(st.tuples(NAMES, VALUES), max_size=4))  # fmt: skip
def test_any_path_and_query_is_answered(
    entry: Any, parts: list[str], query: list[tuple[str, str]], client: Any
) -> None:
    path = PREFIX + entry.path
    for name, part in zip(("name", "sweep", "trial", "table", "figure", "format"), (*parts, *parts), strict=True):
        path = path.replace(f"{{{name}}}", quote(part.encode("utf-8", "surrogatepass"), safe=""))
    answer = client.get(path, params=[(name, value.encode("utf-8", "surrogatepass")) for name, value in query])
    assert answer.status_code < 500
    if answer.headers["content-type"] == "application/json":
        json.loads(answer.text, parse_constant=lambda constant: pytest.fail(constant))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@FUZZED
@given(body=st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_body_is_answered(body: bytes, client: TestClient) -> None:
    for path in ("/sweeps/none/actions", "/trials/study/none/actions", "/trials/study/none/note"):
        headers = {"content-type": "application/json", **HEADERS}
        assert client.post(PREFIX + path, content=body, headers=headers).status_code in (400, 404, 409)


@FUZZED
@given(text=st.text(max_size=300))
def test_a_note_never_becomes_a_script(text: str) -> None:
    from prunegpt.web.api.trials import noted

    html = noted(text + "<script>x</script><img src=x onerror=y> [a](javascript:b)").html
    assert "<script" not in html
    assert "<img" not in html
    assert "javascript:" not in html.replace("[a](javascript:b)", "").partition('href="')[2]


def test_there_is_something_to_fuzz(kept: Root) -> None:
    assert len(ENTRIES) > 20
    assert "recovered" in {one.name for one in study()}
