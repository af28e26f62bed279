"""`prunegpt serve`: says where it is, answers, needs no torch, ends on a signal."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx
import pytest

from tests.support.waiting import until


class Serving:
    """The command in a process of its own."""

    def __init__(self, root: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "prunegpt", "serve", "--root", str(root), "--port", "0", *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PRUNEGPT_")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self._said = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            self._said.set()

    @property
    def port(self) -> int:
        assert self._said.wait(30)
        found = re.search(r"http://[^/]+:(\d+)/", self.lines[0])
        assert found, self.lines
        return int(found[1])

    def get(self, path: str, **headers: str) -> bytes:
        port = self.port

        def answer() -> list[bytes]:
            try:
                with urlopen(Request(f"http://127.0.0.1:{port}{path}", headers=headers), timeout=10) as answer:
                    return [answer.read()]
            except HTTPError:
                raise
            except OSError:
                return []

        return until(answer, "an answer")[0]

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(15)
        self._thread.join()
        return code


def test_it_serves_a_root_that_is_not_there_yet(tmp_path: Path) -> None:
    serving = Serving(tmp_path / "runs")
    assert json.loads(serving.get("/api/v1/sweeps"))["sweeps"] == []
    assert b"<html" in serving.get("/")
    maps = Path(f"/proc/{serving.process.pid}/maps").read_text()
    assert "torch" not in maps
    assert serving.end() == 0
    (line,) = serving.lines
    assert f"dashboard of {tmp_path / 'runs'}: " in line
    assert re.search(r": http://127\.0\.0\.1:\d+/login#[0-9a-f]{64}  \(Ctrl-C ends it\)$", line)
    assert not (tmp_path / "runs").exists()


def test_another_address_needs_the_token_that_is_printed(tmp_path: Path) -> None:
    serving = Serving(tmp_path, "--host", "0.0.0.0")
    with pytest.raises(HTTPError, match="401"):
        serving.get("/api/v1/sweeps")
    (line,) = serving.lines
    token = line.partition("#")[2].split()[0]
    assert len(token) >= 40
    assert json.loads(serving.get("/api/v1/sweeps", Authorization=f"Bearer {token}"))["sweeps"] == []
    assert serving.end() == 0


def test_the_one_link_that_is_printed_lets_in(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    serving.get("/")
    (line,) = serving.lines
    (link,) = re.findall(r"http://\S+", line)
    page, _, token = link.partition("#")
    with httpx.Client(follow_redirects=True) as visitor:
        assert visitor.get(page).status_code == 200
        shown = visitor.post(page, data={"token": token}, headers={"origin": page.removesuffix("/login")})
        assert (shown.status_code, shown.url.path) == (200, "/")
        assert visitor.cookies, "from here on everything is allowed"
    assert serving.end() == 0


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "prunegpt", "serve", "--root", str(tmp_path), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
