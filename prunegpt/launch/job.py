"""The far end of an attempt on a cluster: starts the trial's process on the node and notes how it ended.

Its exit status is in FOLDER/exit.json, which the launcher reads: a scheduler's own books may be late, short of memory
or not kept at all.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from prunegpt.launch.log import LOG
from prunegpt.launch.worker import PARENT_VARIABLE
from prunegpt.root import read_json, write_json

EXIT = "exit.json"
ABANDONED = "abandoned"  # a file next to it: the submitter of the attempt is gone, and it must not begin any more
BY_HAND = ("-P", "-m", "prunegpt", "trial", "run")  # run by the node's own interpreter
TRIAL = (*BY_HAND, "--trust-remote-code")  # where the plan trusts a model's code: the coordinator has made the plan
_ASKS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # all mean: write a checkpoint and end


@dataclass(frozen=True)
class Ended:
    """How the process of an attempt ended.

    Args:
        code: its exit code; None where a signal ended it.
        signal: that signal.
        heard: names of the signals that asked it to end.
    """

    code: int | None
    signal: int | None = None
    heard: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Ended | None":
        """What exit.json in an attempt's folder says; None where it is not there."""
        try:
            found = read_json(folder / EXIT)
            return cls(found["code"], found["signal"], tuple(found["heard"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Job:
    """The process of one attempt, a child of this one; its output goes to FOLDER/log.txt.

    Args:
        folder: of the attempt.
        command: what is run, with the folder as its last argument. Where it begins with an option, it is this
            interpreter that gets it.
        environment: variables over those of this process.
    """

    def __init__(
        self, folder: Path, command: Sequence[str] = TRIAL, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._heard: list[str] = []
        own = [sys.executable] if command[0].startswith("-") else []
        words = [*own, *command, str(folder)]
        parent = {PARENT_VARIABLE: str(os.getpid())}
        variables = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **(environment or {}), **parent}
        with (folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )

    def ask(self, by: str) -> None:
        """SIGTERM to the process alone, which ends its children.

        Args:
            by: the name of the signal that we were asked with ourselves.
        """
        self._heard.append(by)
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the process and all its children."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        """Waits for the end, and writes exit.json."""
        code = self._process.wait()
        self.kill()  # what it may have left behind
        ended = Ended(code if code >= 0 else None, -code if code < 0 else None, tuple(self._heard))
        write_json(self._folder / EXIT, asdict(ended))
        return ended


def run_job(folder: str, command: Sequence[str] = TRIAL) -> None:
    """Runs the attempt in a folder as the main thread of a scheduler's job, and passes on its signals.

    Raises:
        SystemExit: it failed; with its exit code, so that the scheduler records it too.
    """
    if (Path(folder) / ABANDONED).exists():
        sys.exit(f"the attempt {folder} is abandoned: its coordinator ended before it began.")
    for number in _ASKS[1:]:  # a scheduler signals all processes of a job; the trial is to hear of it from us only
        signal.signal(number, signal.SIG_IGN)
    threads = os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    job = Job(Path(folder), command, {"OMP_NUM_THREADS": threads} if threads else None)

    def hear(number: int, _: FrameType | None) -> None:
        job.ask(signal.Signals(number).name)

    for number in _ASKS:
        signal.signal(number, hear)
    ended = job.wait()
    if ended.code or ended.signal:
        sys.exit(ended.code or 128 + (ended.signal or 0))
