"""Optuna's own dashboard of a root's searches, started when it is asked for.

It knows no login and may write, so that it listens on the loopback address alone, in a process of its own.
"""

import socket
import subprocess
import sys
import threading
import time

from prunegpt.errors import LaunchError
from prunegpt.root import Root

_PATIENCE = 30.0  # seconds for it to answer


class OptunaDashboard:
    """At most one process for a root."""

    def __init__(self, root: Root) -> None:
        self._database = root.path / "optuna.db"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._lock = threading.Lock()

    @property
    def available(self) -> bool:
        """Whether there is a search to look at."""
        return self._database.is_file()

    def url(self) -> str:
        """Where it answers; started where it does not run.

        Raises:
            LaunchError: there is no search, or it does not start.
        """
        if not self.available:
            raise LaunchError(f"Optuna's dashboard shows searches, but {self._database} is not there: none has run.")
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return f"http://127.0.0.1:{self._port}/dashboard/"

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.terminate()
                self._process.wait()
                self._process = None

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        command = [sys.executable, "-m", "prunegpt.web.optuna_server", str(self._database), str(self._port)]
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
            "Optuna's dashboard does not start. Try `optuna-dashboard` by hand: " + " ".join(command[3:4])
        )
