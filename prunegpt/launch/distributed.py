"""One trial trained by several processes of this machine, one a GPU: starts them, passes on SIGTERM, reads the end.

They find each other as those that torchrun starts do (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), so that
`torchrun --nproc-per-node N -m prunegpt trial run FOLDER` does the same by hand. Process 0 writes log.txt, points and
record.json; the others write log-RANK.txt, and where they fail record-RANK.json.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prunegpt.errors import LaunchError
from prunegpt.launch.base import processors
from prunegpt.launch.job import TRIAL
from prunegpt.launch.worker import PARENT_VARIABLE
from prunegpt.records import AttemptRecord, record_path
from prunegpt.signals import on_stop_signals

_POLL = 0.1  # seconds
_ALONE = 20.0  # seconds that processes get to end once one of them has failed: they may wait for it in vain
_FOLLOWS = (signal.SIGABRT,)  # how a process may end because another has


@dataclass
class _Process:
    rank: int
    popen: subprocess.Popen[bytes]
    ended: float = 0.0
    killed: bool = False  # by us

    @property
    def code(self) -> int | None:
        return self.popen.poll()


def run_together(folder: Path, processes: int, command: Sequence[str] = (sys.executable, *TRIAL)) -> AttemptRecord:
    """Runs the attempt in a folder by several processes; what it came to stands in record.json, as with one.

    Raises:
        LaunchError: the processes ended, and none of them said how.
    """
    for rank in range(processes):  # of an earlier run by hand
        record_path(folder, rank).unlink(missing_ok=True)
    port = free_port()
    started = [
        _Process(rank, _start(folder, command, environment(rank, processes, port), rank)) for rank in range(processes)
    ]

    def ask(_: int) -> None:  # it is their business to end at the same step
        for process in started:
            with suppress(ProcessLookupError):
                process.popen.send_signal(signal.SIGTERM)

    with on_stop_signals(ask):
        try:
            _wait(started)
        finally:
            _kill(started)
    record = _judge(folder, started)
    record.write(record_path(folder))
    return record


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What a process of several must know. They share the processors."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or processors())
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(max(1, threads // processes)),
        PARENT_VARIABLE: str(os.getpid()),
    }


def _start(folder: Path, command: Sequence[str], variables: Mapping[str, str], rank: int) -> subprocess.Popen[bytes]:
    words = [*command, str(folder)]
    if rank == 0:
        return subprocess.Popen(words, env=variables)
    with (folder / f"log-{rank}.txt").open("ab") as log:
        return subprocess.Popen(words, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _wait(processes: Sequence[_Process]) -> None:
    """Until all have ended, or one has failed and the others had their time."""
    deadline = None
    while running := [process for process in processes if not process.ended]:
        for process in running:
            if process.code is not None:
                process.ended = time.time()
                if process.code and deadline is None:
                    deadline = time.monotonic() + _ALONE
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(_POLL)


def _kill(processes: Sequence[_Process]) -> None:
    for process in processes:
        if process.code is None:
            process.killed = True
            process.popen.kill()
        process.popen.wait()


def _judge(folder: Path, processes: Sequence[_Process]) -> AttemptRecord:
    """What the attempt came to: what process 0 says, or the first failure of any."""
    records = {process.rank: _read(record_path(folder, process.rank)) for process in processes}
    told = {rank: record for rank, record in records.items() if record is not None}
    failed = sorted((record.ended, rank) for rank, record in told.items() if record.state != "finished")
    dead = [process for process in processes if (process.code or 0) < 0 and not process.killed]
    first = next((process for process in dead if -(process.code or 0) not in _FOLLOWS), None)
    if first is None and dead and not failed:
        first = dead[0]
    if first is not None:
        return _killed(told.get(0) or next(iter(told.values()), None), folder, first, len(processes))
    if not failed and 0 in told:
        return told[0]
    if not failed:
        codes = ", ".join(str(process.code) for process in processes)
        raise LaunchError(
            f"a trial must leave a record, but its {len(processes)} processes ended with exit codes {codes} and left "
            f"none. Look into {folder / 'log.txt'} and log-RANK.txt beside it."
        )
    cause = told[failed[0][1]]
    return cause.model_copy(update={"stages": told[0].stages if 0 in told else cause.stages})


def _killed(known: AttemptRecord | None, folder: Path, process: _Process, count: int) -> AttemptRecord:
    number = -(process.code or 0)
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    attempt = int(folder.name.rpartition("-")[2])
    base = known or AttemptRecord(
        sweep=folder.parents[1].name, trial=folder.parent.name, attempt=attempt, state="failed"
    )
    return base.model_copy(
        update={
            "state": "failed",
            "reason": "signal",
            "error": f"process {process.rank} of {count} was killed by signal {name}.",
            "ended": process.ended or time.time(),
        }
    )


def _read(path: Path) -> AttemptRecord | None:
    try:
        return AttemptRecord.read(path)
    except (OSError, ValueError):
        return None


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
