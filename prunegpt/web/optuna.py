"""Optuna's own dashboard of a root's searches, started when it is asked for.

It knows no login and may write, so that it listens on the loopback address alone, in a process of its own.
"""

import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from urllib.parse import quote

from prunegpt.errors import LaunchError
from prunegpt.root import Root

DATABASE = "optuna.db"  # below the root
_PATIENCE = 30.0  # seconds for it to answer


class OptunaDashboard:
    """At most one process for a root."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._database = root.path / DATABASE
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._lock = threading.Lock()

    @property
    def available(self) -> bool:
        """Whether there is a search to look at."""
        return self._database.is_file()

    def url(self, sweep: str, address: str) -> str:
        """Where it answers: the sweep's search, or all of them where it has several. Started if need be.

        Args:
            sweep: its name.
            address: where our own pages are, for the links to them.

        Raises:
            LaunchError: there is no search, or it does not start.
        """
        if not self.available:
            raise LaunchError(f"Optuna's dashboard shows searches, but {self._database} is not there: none has run.")
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start(address)
            studies = self._studies(sweep)
            page = f"studies/{studies[0]}" if len(studies) == 1 else ""
            return f"http://127.0.0.1:{self._port}/dashboard/{page}"

    def _studies(self, sweep: str) -> list[int]:
        """Ids of a sweep's studies; none where the database cannot be read now."""
        try:
            with closing(sqlite3.connect(f"file:{quote(str(self._database))}?mode=ro", uri=True)) as connection:
                found = connection.execute("SELECT study_id, study_name FROM studies ORDER BY study_id").fetchall()
        except sqlite3.Error:
            return []
        return [number for number, name in found if name.rpartition("/")[0] == sweep]

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.terminate()
                self._process.wait()
                self._process = None

    def _start(self, address: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        command = [
            sys.executable, "-m", "prunegpt.web.optuna_server", str(self._root.path), str(self._port), address
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        self._process.kill()
        raise LaunchError(
            f"Optuna's dashboard does not start. Try it by hand: optuna-dashboard sqlite:///{self._database}"
        )
