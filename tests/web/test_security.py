"""Who gets in, from where, and what an answer allows a browser to do."""

import base64
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prunegpt.access import kept_token, own_token
from prunegpt.errors import LaunchError
from prunegpt.root import Root
from prunegpt.web.app import create_app, run
from prunegpt.web.security import is_loopback, local_path
from tests.support.served import HEADERS, ORIGIN, TOKEN, open_app

EVIL = ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "a b", "[::1",
        "127.0.0.1:8000@evil.example", "192.168.1.5:8000")  # fmt: skip
assert EVIL


@pytest.fixture
def locked(kept: Root) -> Iterator[TestClient]:
    app = create_app(kept, token=TOKEN, host="0.0.0.0", port=8000)
    with TestClient(app, base_url="http://192.168.1.5:8000", follow_redirects=False) as client:
        yield client


@pytest.mark.parametrize("host", EVIL)
def test_another_hosts_name_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/api/v1/sweeps", "/static/icon.svg", "/login"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 403
        assert "its own name only" in answer.json()["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9999", "localhost", "LOCALHOST:80", "[::1]:8000"])
def test_its_own_names_are_taken_with_any_port(client: TestClient, host: str) -> None:
    assert client.get("/api/v1/health", headers={"host": host}).status_code == 200


def test_a_name_that_is_allowed_is_taken(kept: Root) -> None:
    app = open_app(kept, hosts=["proxy.example"])
    with TestClient(app, base_url="http://proxy.example") as client:
        assert client.get("/api/v1/sweeps").status_code == 200


def test_every_answer_carries_the_policy(client: TestClient) -> None:
    answers = [client.get(path) for path in ("/", "/api/v1/sweeps", "/static/icon.svg", "/nothing", "/api/v1/nothing")]
    answers.append(client.get("/", headers={"host": "evil.example"}))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
        assert scripts == "script-src 'self'"
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"  # without any, a form's Origin is null
        assert answer.headers["x-frame-options"] == "DENY"
    assert answers[1].headers["content-type"] == "application/json"
    assert answers[1].headers["cache-control"] == "no-store"


def test_without_the_token_nothing_is_told(locked: TestClient) -> None:
    for path in ("/api/v1/sweeps", "/api/v1/events", "/api/v1/openapi.json", "/api/v1/trials/study/going/log"):
        answer = locked.get(path)
        assert (answer.status_code, list(answer.json())) == (401, ["error"])
    page = locked.get("/sweeps/study?x=1")
    assert page.status_code == 303
    assert page.headers["location"] == "/login?next=%2Fsweeps%2Fstudy%3Fx%3D1"
    posted = locked.post("/api/v1/trials/study/going/note", json={"text": "x"}, headers={"X-PruneGPT": "1"})
    assert posted.status_code == 401
    assert locked.get("/api/v1/health").status_code == 200
    assert locked.get("/login").status_code == 200


@pytest.mark.parametrize(
    "given",
    ["Bearer wrong", f"Bearer {TOKEN[:-1]}", f"bearer {TOKEN}x", "Basic !!!", "Basic Zm9v", "Bearer é", TOKEN],
    ids=["other", "shorter", "longer", "no-base64", "no-colon", "no-ascii", "no-scheme"],  # the token is new every time
)
def test_a_wrong_token_is_refused(locked: TestClient, given: str) -> None:
    assert locked.get("/api/v1/sweeps", headers={"authorization": given.encode()}).status_code == 401


def test_the_token_opens_as_bearer_and_as_password(locked: TestClient) -> None:
    basic = base64.b64encode(f"api:{TOKEN}".encode()).decode()
    for given in (f"Bearer {TOKEN}", f"Basic {basic}"):
        assert locked.get("/api/v1/sweeps", headers={"authorization": given}).status_code == 200


def test_logging_in_gives_a_cookie_that_does_not_hold_the_token(locked: TestClient) -> None:
    wrong = locked.post("/login", data={"token": "guess", "next": "/sweeps/study"})
    assert (wrong.status_code, wrong.headers["location"]) == (303, "/login?failed=1&next=%2Fsweeps%2Fstudy")
    assert "set-cookie" not in wrong.headers
    right = locked.post("/login", data={"token": TOKEN, "next": "/sweeps/study"})
    assert (right.status_code, right.headers["location"]) == (303, "/sweeps/study")
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert locked.get("/api/v1/sweeps").status_code == 200
    locked.cookies.clear()
    locked.cookies.set("prunegpt-8000", TOKEN)
    assert locked.get("/api/v1/sweeps").status_code == 401


WRITING = sorted(
    {
        (method, route.path)
        for route in create_app(Root(Path("none")), token=TOKEN, host="127.0.0.1", port=8000).routes
        for method in getattr(route, "methods", None) or ()
        if method not in ("GET", "HEAD", "OPTIONS")
    }
    | {("PUT", "/sweeps/study"), ("DELETE", "/trials/study/going"), ("PATCH", "/"), ("POST", "/static/icon.svg")}
)


def files(root: Root) -> list[str]:
    """All that lies in a root, but locks, and what SQLite keeps beside a database that is open."""
    found = (file for file in root.path.rglob("*") if file.suffix not in (".db-shm", ".db-wal", ".lock"))
    return sorted(map(str, found))


@pytest.mark.parametrize(("method", "path"), WRITING)
def test_on_loopback_whoever_looks_cannot_write(own: TestClient, made: Root, method: str, path: str) -> None:
    """Every route that takes more than a question, the W&B endpoint's too: 401 without the token, and nothing done."""
    path = re.sub(r"\{\w+(:\w+)?\}", "study", path)
    before = files(made)
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"prunegpt-8000={TOKEN}"}):
        headers = {"Authorization": "", "X-PruneGPT": "1", **given}
        answer = own.request(method, path, content=b'{"action": "resume", "text": "x", "query": "{viewer{id}}"}',
                             headers={"Content-Type": "application/json", **headers})  # fmt: skip
        assert answer.status_code == 401
        assert "open the link that `prunegpt serve` printed" in answer.json()["error"]
    assert files(made) == before
    assert own.get("/api/v1/trials/study/going", headers={"Authorization": ""}).json()["notes"]["text"] == ""


def test_there_are_routes_that_write() -> None:
    assert {"/graphql", "/api/v1/sweeps/{name}/actions"} <= {path for _, path in WRITING}


def test_the_roots_token_is_its_owners_alone(tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    assert own_token(root) != own_token(root)  # nothing is written where no root is
    assert not root.path.exists()
    root.path.mkdir()
    token = own_token(root)
    file = root.path / "serve.token"
    assert (file.stat().st_mode & 0o777, own_token(root), kept_token(root)) == (0o600, token, token)
    assert [path.name for path in root.path.iterdir()] == ["serve.token"]
    for spoil in (lambda: file.chmod(0o640), lambda: file.write_text("short"), lambda: file.write_bytes(b"\xff" * 40)):
        spoil()
        assert kept_token(root) is None
        token, old = own_token(root), token
        assert token != old
        assert (file.stat().st_mode & 0o777, kept_token(root)) == (0o600, token)
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert own_token(root) != token
    assert not file.is_symlink()


def test_a_token_in_the_address_opens_nothing(locked: TestClient) -> None:
    assert locked.get(f"/api/v1/sweeps?token={TOKEN}").status_code == 401


@pytest.mark.parametrize("target", ["//evil.example", "/\\evil.example", "https://evil.example", "", "x", "/\r\nX: y"])
def test_after_logging_in_one_stays_here(locked: TestClient, target: str) -> None:
    assert local_path(target) == "/"
    assert locked.post("/login", data={"token": TOKEN, "next": target}).headers["location"] == "/"


FOREIGN: dict[str, dict[str, str]] = {
    "another origin": {"origin": "http://evil.example", **HEADERS},
    "another port": {"origin": "http://127.0.0.1:9999", **HEADERS},
    "no origin at all": {"origin": "null", **HEADERS},
    "another site": {"sec-fetch-site": "cross-site", **HEADERS},
    "without our header": {"origin": ORIGIN},
    "with another value": {"origin": ORIGIN, "X-PruneGPT": "2"},
}
assert FOREIGN


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN.keys())
def test_an_action_from_elsewhere_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    for path, body in (
        ("/api/v1/sweeps/study/actions", {"action": "stop"}),
        ("/api/v1/trials/study/too-big/actions", {"action": "retry"}),
        ("/api/v1/trials/study/too-big/note", {"text": "mine"}),
    ):
        assert client.post(path, json=body, headers=headers).status_code == 403
    assert client.get("/api/v1/trials/study/too-big").json()["notes"]["text"] == ""


def test_an_action_must_be_json(own: TestClient) -> None:
    answer = own.post(
        "/api/v1/trials/study/too-big/note", content='{"text": "x"}', headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 415


TRAVERSALS = (
    "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/%00",
    "/api/v1/trials/study/..%2f..%2fprunegpt.db/log", "/api/v1/trials/../../log", "/api/v1/trials/study/%2e%2e/log",
    "/sweeps/..%2f..%2fetc%2fpasswd", "/api/v1/sweeps/study/tables/..%2f..%2fx.md", "/../../etc/passwd",
)  # fmt: skip
assert TRAVERSALS


@pytest.mark.parametrize("path", TRAVERSALS)
def test_paths_that_climb_lead_nowhere(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "create_app" not in answer.text


def test_a_log_that_is_a_link_out_of_the_root_is_not_read(own: TestClient, made: Root, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    log = made.attempt("study", "going", 1) / "log.txt"
    log.unlink()
    log.symlink_to(secret)
    answer = own.get("/api/v1/trials/study/going/log")
    assert answer.status_code == 403
    assert "the secret" not in answer.text


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_which_addresses_are_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_token_that_can_be_guessed_is_not_taken(kept: Root) -> None:
    with pytest.raises(LaunchError, match=r"16 characters at least; it has 6. Leave --token out"):
        run(kept, host="127.0.0.1", port=0, token="secret")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_in_the_place_of_the_token_is_none(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "serve.token")
    assert kept_token(Root(tmp_path)) is None
    assert len(own_token(Root(tmp_path))) == 64
