"""A dashboard on a port of its own, for what only a real connection shows."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette

from prunegpt.access import new_token
from prunegpt.root import Root
from prunegpt.web.app import create_app
from tests.support.waiting import until

ORIGIN = "http://127.0.0.1:8000"
TOKEN = new_token()
HEADERS = {"X-PruneGPT": "1", "Authorization": f"Bearer {TOKEN}"}


def open_app(root: Root, *, port: int = 8000, hosts: Sequence[str] = ()) -> Starlette:
    """The dashboard as it is on loopback: whoever asks may look, and who knows TOKEN may do the rest."""
    return create_app(root, token=TOKEN, open_to_read=True, host="127.0.0.1", port=port, hosts=hosts)


@contextmanager
def served(root: Root, **more: Any) -> Iterator[str]:
    """Its address, while the block lasts.

    Args:
        more: of the server's configuration.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app = open_app(root, port=port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, **more))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until(lambda: server.started, "the server")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


class Listener:
    """Reads server-sent events in a thread, with the moment of each."""

    def __init__(self, url: str, last: str = "") -> None:
        self.events: list[tuple[float, str, str, Any]] = []  # moment, id, kind, data
        parts = urlsplit(url)
        connection = HTTPConnection(parts.netloc, timeout=30)
        headers = {"Last-Event-ID": last.encode()} if last else {}
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        self._socket = connection.sock
        self._answer = connection.getresponse()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            for line in self._answer:
                text = line.decode().rstrip("\r\n")
                if not text and fields:
                    data = json.loads(fields.get("data", "null"))
                    self.events.append((time.monotonic(), fields.get("id", ""), fields.get("event", ""), data))
                    fields = {}
                elif ": " in text and not text.startswith(":"):
                    name, _, value = text.partition(": ")
                    fields[name] = value
        except (OSError, HTTPException):
            return

    def wait(self, kind: str) -> tuple[float, str, str, Any]:
        """The first event of a kind, taken away with those before it."""
        return until(lambda: self._take(kind), f"an event {kind!r}")  # type: ignore[return-value]

    def _take(self, kind: str) -> tuple[float, str, str, Any] | None:
        for index, event in enumerate(self.events):
            if event[2] == kind:
                del self.events[: index + 1]
                return event
        return None

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._answer.close()
