"""One trial trained by several processes of this machine, one per GPU: starts them, passes on SIGTERM, reads the end.

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
from pathlib import Path

from prunegpt.errors import LaunchError
from prunegpt.launch.job import TRIAL
from prunegpt.launch.worker import PARENT_VARIABLE
from prunegpt.records import AttemptRecord, record_path
from prunegpt.signals import on_stop_signals
from prunegpt.spec.execution import processors

_POLL = 0.1  # seconds
ALONE = 20.0  # seconds that processes get to end once one of them has failed: they may wait for it in vain
_FOLLOWS = (signal.SIGABRT,)  # how a process may end because another has


def run_together(folder: Path, processes: int, command: Sequence[str] = (sys.executable, *TRIAL)) -> AttemptRecord:
    """Runs the attempt in a folder by several processes; the result is in record.json, as with one.

    Raises:
        LaunchError: the processes ended, and none of them said how.
    """
    for rank in range(processes):  # of an earlier run by hand
        record_path(folder, rank).unlink(missing_ok=True)
    port = free_port()
    started = [_start(folder, command, environment(rank, processes, port), rank) for rank in range(processes)]

    def ask(_: int) -> None:  # it is their business to end at the same step
        for process in started:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    ended: dict[int, float] = {}
    with on_stop_signals(ask):
        try:
            _wait(started, ended)
        finally:
            for process in started:
                process.kill()
                process.wait()
    record = _judge(folder, {rank: (process.returncode, ended.get(rank)) for rank, process in enumerate(started)})
    record.write(record_path(folder))
    return record


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What a process of several must know. They share the CPU cores."""
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


def _wait(processes: Sequence[subprocess.Popen[bytes]], ended: dict[int, float]) -> None:
    """Until all have ended, or one has failed and the others had their time; notes rank -> when it ended."""
    deadline = None
    while len(ended) < len(processes):
        for rank, process in enumerate(processes):
            if rank not in ended and process.poll() is not None:
                ended[rank] = time.time()
                if process.returncode and deadline is None:
                    deadline = time.monotonic() + ALONE
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(_POLL)


def _judge(folder: Path, ends: Mapping[int, tuple[int, float | None]]) -> AttemptRecord:
    """What the attempt came to: what process 0 says, or the first failure of any.

    Args:
        ends: rank -> exit code, and when it ended; None where we ended it.
    """
    told: dict[int, AttemptRecord] = {}
    for rank in ends:
        with suppress(OSError, ValueError):
            told[rank] = AttemptRecord.read(record_path(folder, rank))
    failed = sorted((record.ended, rank) for rank, record in told.items() if record.state != "finished")
    dead = [rank for rank, (code, when) in ends.items() if code < 0 and when is not None]
    first = next((rank for rank in dead if -ends[rank][0] not in _FOLLOWS), None)
    if first is None and dead and not failed:
        first = dead[0]
    if first is not None:
        return _killed(told.get(0) or next(iter(told.values()), None), folder, first, ends)
    if not failed and 0 in told:
        return told[0]
    if not failed:
        codes = ", ".join(str(code) for code, _ in ends.values())
        raise LaunchError(
            f"a trial must leave a record; its {len(ends)} processes ended with exit codes {codes} and left none. Look "
            f"into {folder / 'log.txt'} and log-RANK.txt beside it."
        )
    cause = told[failed[0][1]]
    return cause.model_copy(update={"stages": told[0].stages if 0 in told else cause.stages})


def _killed(
    known: AttemptRecord | None, folder: Path, rank: int, ends: Mapping[int, tuple[int, float | None]]
) -> AttemptRecord:
    code, when = ends[rank]
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    base = known or AttemptRecord(
        sweep=folder.parents[1].name,
        trial=folder.parent.name,
        attempt=int(folder.name.rpartition("-")[2]),
        state="failed",
    )
    return base.model_copy(
        update={
            "state": "failed",
            "reason": "signal",
            "error": f"process {rank} of {len(ends)} was killed by signal {name}.",
            "ended": when,
        }
    )


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
