"""Malformed requests, generated over every route that the server has: each is refused with its reason, none is a 500.

The routes are read from the app, so that a new one is tried without being named here. Few in the gate, 2,000 with the
slow tests. What kills the generator's request before it is sent (a name that no client would send) is not counted.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from prunegpt.root import Root
from prunegpt.tracking.endpoint.app import WandbServer
from tests.support.served import HEADERS, ORIGIN, open_app
from tests.support.study import make_root

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "FOO")
NAMES = ("study", "recovered", "going", "all", "metrics")
ODD = ("", ".", "..", "%2e%2e", "%00", "%ff", "a b", "é", "%F0%9F%92%A9", "x" * 3000, "-1", "1e999", "<script>", "{x}",
       "'", "%0d%0aX: y", ":", "*", "[", "null", "0" * 400, "9" * 30)  # fmt: skip
KNOWN = ("offset", "limit", "sort", "descending", "state", "q", "name", "axis", "points", "stage", "attempt", "tail",
         "trial", "next", "failed", "since", "sweep")  # fmt: skip
BODIES: tuple[bytes, ...] = (
    b"", b"{", b"[]", b"null", b"0", b'"x"', b"\xff\xfe", b"\x00" * 50, b"{}" * 20, b"[" * 20_000,
    b'{"a":' * 2000 + b"1",
    b'{"action": "explode"}', b'{"action": ["stop"]}', b'{"action": null}', b'{"text": 1}', b'{"text": "\\ud800"}',
    b'{"action": 1e999}', b'{"text": NaN}', b'{"text": "x", "more": 1}', b'{"query": 1}', b'{"query": "{"}',
    b'{"query": "query { viewer { id } }", "variables": []}', b'{"query": "", "variables": {"a": {}}}',
    b"token=%ff&next=//evil.example", b"a" * (1 << 21),
)  # fmt: skip
HEADS = {
    "content-type": ("application/json", "text/plain", "application/json; charset=\x80", "", "multipart/form-data"),
    "content-length": ("-1", "x", "99999999999999999999"),
    "content-encoding": ("gzip", "br", "identity, gzip"),
    "accept": ("*/*", "text/event-stream", "\xff"),
    "cookie": ("prunegpt-8000=x", ";;;=", 'a="', "\xff=\xfe"),
    "authorization": ("", "Basic", "Basic !!!", "Bearer", "Bearer \xe9"),
    "origin": ("null", "http://evil.example", ORIGIN, ":::"),
    "host": ("", "127.0.0.1:8000", "[::1", "a b", "evil.example"),
    "last-event-id": ("x-y", "-", "\xff", f"{'9' * 5000}"),
    "range": ("bytes=5-1", "bytes=x"),
    "if-modified-since": ("never",),
    "x-prunegpt": ("1", "2"),
}
WANDB = {route.path for route in WandbServer(Root(Path("none"))).routes()}  # thousands of theirs: tests/tracking
STREAMS = ("/api/v1/events",)  # never end where they are asked for rightly


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server of its own root, whose errors are answered as they are to a visitor."""
    root: Root = make_root(tmp_path_factory.mktemp("malformed") / "runs")
    with TestClient(open_app(root), base_url=ORIGIN, headers=HEADERS, raise_server_exceptions=False) as client:
        client.follow_redirects = False
        yield client


def paths(client: TestClient) -> list[str]:
    """Every route, as its pattern."""
    found = []
    for route in client.app.routes:
        assert isinstance(route, Route | Mount)
        found.append(route.path if isinstance(route, Route) else f"{route.path}/{{path}}")
    return [path for path in dict.fromkeys(found) if path not in STREAMS]


def request_of(chance: random.Random, pattern: str) -> dict[str, Any]:
    """One request that is wrong in some way, or in several."""

    def part(_: re.Match[str]) -> str:
        text = chance.choice(NAMES if chance.random() < 0.5 else ODD)
        return text if "%" in text else quote(text, safe="")

    url = re.sub(r"\{\w+(?::\w+)?\}", part, pattern)
    query = "&".join(
        f"{chance.choice(KNOWN if chance.random() < 0.8 else ODD)}={chance.choice(NAMES + ODD)}"
        for _ in range(chance.randrange(4))
    )
    heads = {name: chance.choice(values).encode("latin-1") for name, values in HEADS.items() if chance.random() < 0.15}
    if chance.random() < 0.7:
        heads["content-type"] = b"application/json"
    return {
        "method": chance.choice(METHODS[:2] if chance.random() < 0.7 else METHODS),
        "url": re.sub(r"[\s#]", "_", f"{url}?{query}"),
        "content": chance.choice(BODIES) if chance.random() < 0.7 else chance.randbytes(chance.randrange(200)),
        "headers": heads,
    }


def check(client: TestClient, pattern: str, seed: int) -> None:
    """Raises AssertionError where the answer is a 500, or an error without a reason."""
    request = request_of(random.Random(f"{pattern} {seed}"), pattern)
    if "resume" in request["content"][:100].decode("latin-1"):  # nothing is started here
        return
    answer = client.request(**request)
    told = {**request, "content": request["content"][:80], "answer": answer.text[:500], "seed": seed}
    assert answer.status_code < 500, told
    asked = str(answer.request.url.path)
    if answer.status_code >= 400 and asked.startswith("/api/v1/") and request["method"] != "HEAD":
        assert json.loads(answer.text)["error"], told


def test_malformed_requests_are_refused(every: TestClient) -> None:
    found = paths(every)
    assert len(found) > 30
    for seed in range(12):
        for pattern in found:
            check(every, pattern, seed)


@pytest.mark.slow
def test_two_thousand_malformed_requests_are_refused(every: TestClient) -> None:
    found = [path for path in paths(every) if path not in WANDB]
    for seed in range(100, 100 + 2000 // len(found) + 1):
        for pattern in found:
            check(every, pattern, seed)
