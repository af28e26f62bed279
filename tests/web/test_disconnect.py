"""Visitors who go away in the middle of what they send, on every route that takes something."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

import prunegpt
from prunegpt.root import Root
from tests.support.served import HEADERS, ORIGIN, open_app
from tests.support.study import make_root

_TAKING = ("POST", "PUT", "PATCH", "DELETE")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Starlette:
    root: Root = make_root(tmp_path_factory.mktemp("gone") / "runs")
    return open_app(root)


def routes(app: Starlette) -> list[tuple[str, str]]:
    found = [(route, method) for route in app.routes if isinstance(route, Route) for method in route.methods or ()]
    return [("POST", "/login")] + [(method, route.path) for route, method in found if method in _TAKING]


def status(app: Starlette, method: str, path: str) -> int | None:
    """What is answered to half a request; None where nothing is."""
    sent: list[Any] = []
    parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> dict[str, Any]:
        return next(parts, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    host = ORIGIN.partition("//")[2]
    headers = {"host": host, "content-type": "application/json", "origin": ORIGIN, **HEADERS}
    scope = {
        "type": "http",
        "method": method,
        "path": re.sub(r"{\w+(:path)?}", "x", path),
        "raw_path": b"",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    with ThreadPoolExecutor(1) as apart:  # a browser of other tests keeps an event loop in this thread
        apart.submit(lambda: asyncio.run(app(scope, receive, send))).result()
    return next((message["status"] for message in sent if message["type"] == "http.response.start"), None)


def test_whoever_goes_away_is_no_defect(app: Starlette) -> None:
    found = {(method, path): status(app, method, path) for method, path in routes(app)}
    assert len(found) > 5
    assert {place: code for place, code in found.items() if code is not None and code >= 500} == {}
    assert found["POST", "/login"] == 400


def test_bodies_are_read_in_one_place() -> None:
    package = Path(prunegpt.__file__).parent
    readers = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if re.search(r"request\.(stream|body|form|json)\(", file.read_text(encoding="utf-8"))
    }
    assert readers == {"tracking/endpoint/intake.py"}
