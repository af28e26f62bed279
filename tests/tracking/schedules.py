"""Random lives of one run: what its clients have written down must be at the server, each row once."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from prunegpt.root import Root
from prunegpt.tracking.history import HISTORY
from prunegpt.tracking.imports import NoRun, read_run, run_files
from tests.support.waiting import until

CHECKOUT = Path(__file__).parents[2]
TOKEN = "t" * 40
LONGEST = 120.0  # seconds that a client or a server may take
ACTIONS = ("log", "log offline", "kill client", "kill server", "sync")
SCRIPT = """
import sys, wandb
first, count, mode, told = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
run = wandb.init(project="p", id="r1", resume="allow" if mode == "online" else None, mode=mode)
for row in range(first, first + count):
    run.log({"row": row})
    with open(told, "a") as file:
        file.write(f"{row}\\n")
run.finish()
"""


class Schedule:
    """One run, its server and its clients, all in a folder of their own.

    Args:
        python: the interpreter of the clients, and `wandb` beside it.
        environment: what clients see beside the usual.
    """

    def __init__(self, folder: Path, seed: int, python: Path = Path(sys.executable), **environment: str) -> None:
        self.folder = folder
        self.root = Root(folder / "runs")
        self.random = random.Random(seed)
        self.rows = 0  # that scripts were told to log
        self.done: list[str] = []
        self._python = python
        self._told = folder / "told"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        self.address = f"http://127.0.0.1:{self._port}"
        self._environment = own | {
            "HOME": str(folder),
            "PYTHONPATH": str(CHECKOUT),
            "WANDB_BASE_URL": self.address,
            "WANDB_API_KEY": TOKEN,
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            **environment,
        }
        (folder / "script.py").write_text(SCRIPT)
        self._server = self._serve()

    def run(self, actions: int) -> None:
        """Lets this many things happen, the last of which is that everything is synced."""
        for _ in range(actions):
            self.happen(self.random.choice(ACTIONS))
        for _ in range(2):
            self.happen("sync")

    def happen(self, action: str) -> None:
        """Lets one thing happen."""
        self.done.append(action)
        if action == "sync":
            self._sync()
            return
        client = self._client("offline" if action == "log offline" else "online")
        if action in ("kill client", "kill server"):
            wanted = self.rows - self.random.randint(0, 8)
            until(lambda: self._reached(wanted) or client.poll() is not None, "rows")
            if action == "kill client":
                _kill(client.pid)
            else:
                _kill(self._server.pid)
                self._server = self._serve()
        client.wait(LONGEST)

    def close(self) -> None:
        """Ends the server."""
        _kill(self._server.pid)
        self._server.wait(LONGEST)

    def written(self) -> Counter[int]:
        """The rows that clients have on disk."""
        found: Counter[int] = Counter()
        for file in run_files(self.folder / "wandb"):
            try:
                found.update(int(row["row"]) for row in read_run(file).rows if "row" in row)
            except NoRun:
                continue
        return found

    def kept(self) -> Counter[int]:
        """The rows that the server has."""
        attempts = sorted((self.root.path / "trials" / "wandb-p" / "r1").glob("attempt-*"))
        rows = [json.loads(line) for line in (attempts[-1] / HISTORY).read_text().splitlines()] if attempts else []
        return Counter(int(row["row"]) for row in rows if "row" in row)

    def output(self) -> str:
        """What servers and clients have printed."""
        return (self.folder / "output").read_text(encoding="utf-8", errors="replace")

    def _reached(self, row: int) -> bool:
        return self._told.exists() and any(int(line) >= row for line in self._told.read_text().split())

    def _client(self, mode: str) -> "subprocess.Popen[bytes]":
        count = self.random.randint(3, 12)
        arguments = ("script.py", self.rows, count, mode, self._told)
        self.rows += count
        return self.start(self._python, *arguments)

    def _sync(self) -> None:
        for folder in sorted((self.folder / "wandb").glob("*run-*-r1")):
            for mark in folder.glob("*.synced"):
                mark.unlink()
            self.start(self._python.with_name("wandb"), "sync", "--include-synced", folder).wait(LONGEST)

    def _serve(self) -> "subprocess.Popen[bytes]":
        arguments = ("-m", "prunegpt", "serve", "--root", self.root.path, "--port", self._port, "--token", TOKEN)
        server = self.start(Path(sys.executable), *arguments)
        until(self._answers, "the server")
        return server

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def start(self, program: Path, *arguments: object) -> "subprocess.Popen[bytes]":
        """Starts a program in the folder; what it prints goes to `output`."""
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                [str(program), *map(str, arguments)],
                cwd=self.folder, env=self._environment, stdout=output, stderr=output,
            )  # fmt: skip


def _kill(pid: int) -> None:
    """Kills a process and all that it has started."""
    try:
        process = psutil.Process(pid)
        for one in (*process.children(recursive=True), process):
            one.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return
    time.sleep(0.05)
