"""Requests that never come to an end: they hold neither the server nor its files."""

import json
import logging
import resource
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

from prunegpt.root import Root
from prunegpt.web.connections import BoundedConnection
from tests.support.served import served

HEAD = b"POST /files/local/mine/abc/file_stream HTTP/1.1\r\nHost: 127.0.0.1\r\n"
WHOLE = b"GET /api/v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HALF = {
    "nothing": b"",
    "half a line": b"GET /api",
    "half its headers": HEAD + b"Content-",
    "no body": HEAD + b"Content-Length: 100\r\n\r\n",
    "half a body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n50\r\n{",
    "a second one that is half": WHOLE + b"GET /api",
    "a login that is half": b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\nto",
}


def connected(address: str, sent: bytes = b"") -> socket.socket:
    parts = urlsplit(address)
    found = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)
    found.sendall(sent)
    return found


def health(address: str) -> str:
    with urllib.request.urlopen(urljoin(address, "/api/v1/health"), timeout=30) as answer:
        return str(json.load(answer)["status"])


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes; a time-out is an error."""
    with connection:
        found = b""
        while part := connection.recv(65536):
            found += part
    return found


@pytest.mark.parametrize("sent", HALF.values(), ids=HALF.keys())
def test_a_request_that_is_not_there_in_time_is_closed(tmp_path: Path, sent: bytes) -> None:
    with served(Root(tmp_path), http=partial(BoundedConnection, arrival=0.2), timeout_keep_alive=1) as address:
        answer = read_all(connected(address, sent))
        assert answer.split()[1] in ((b"200",) if WHOLE in sent else (b"401", b"408"))  # 401: who asks is asked first
        assert health(address) == "ok"


def test_whole_requests_go_on_in_one_connection(tmp_path: Path) -> None:
    with served(Root(tmp_path), http=partial(BoundedConnection, arrival=5)) as address:
        connection = HTTPConnection(urlsplit(address).netloc, timeout=30)
        for _ in range(3):
            connection.request("GET", "/api/v1/health")
            assert json.load(connection.getresponse())["status"] == "ok"
        connection.close()


@pytest.mark.parametrize("sent", [HALF["half a line"], HALF["half a body"]], ids=["headers", "body"])
def test_more_connections_than_fit_take_the_place_of_those_that_wait(
    tmp_path: Path, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        served(Root(tmp_path), http=partial(BoundedConnection, most=8)) as address,
        ExitStack() as held,
    ):
        first = connected(address, sent)
        for _ in range(30):
            held.enter_context(connected(address, sent))
        assert health(address) == "ok"
        with suppress(ConnectionResetError):  # its bytes may not have been read yet
            read_all(first)
    assert [record for record in caplog.records if record.exc_info] == []


def test_the_server_is_reached_though_more_connect_than_files_may_be_open(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
        "from prunegpt.cli import main; sys.argv = ['prunegpt', 'serve', '--port', '0', '--root', sys.argv[1]]; main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = server.stderr.readline().split(": ", 1)[1].split()[0]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
        with ExitStack() as held, ThreadPoolExecutor(16) as at_once:
            for one in at_once.map(connected, [address] * 800):
                held.enter_context(one)
            assert health(address) == "ok"
    finally:
        server.terminate()
        _, log = server.communicate(timeout=30)
    assert "Traceback" not in log
    assert len(log) < 1000
