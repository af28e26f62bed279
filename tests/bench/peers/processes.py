"""Processes that are timed as a whole: by the wall, by the processor, and by the most memory that they had."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.harness import Clock, Ratio

_PAUSE = 0.05  # seconds between two looks at a process


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    Attributes:
        wall: seconds from its start to its end.
        processor: seconds of the processor, in the process and the system, of it and the children it waited for.
        peak: MiB of it that were in memory at most.
        result: what its last line of output holds, as JSON.
    """

    wall: float
    processor: float
    peak: float
    result: Mapping[str, Any]

    def seconds(self, clock: Clock) -> float:
        """Of the whole process."""
        return self.wall if clock == "wall" else self.processor


def run(command: Sequence[object], env: Mapping[str, str], *, parse: Callable[[str], Any] | None = None) -> Finished:
    """Runs a process to its end.

    Args:
        command: its words.
        env: its environment variables.
        parse: makes the result of its output; None = its last line is JSON.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(words, env=dict(env), stdout=output, stderr=errors)
        peak = 0.0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, _peak(process.pid))  # not the usage's: that begins with our own, before it became another
            time.sleep(_PAUSE)
        wall = time.perf_counter() - started
        _, status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(
                f"{' '.join(words)} ended with {process.returncode}:\n{printed[-2000:]}{errors.read()[-3000:]}"
            )
    result = parse(printed) if parse else json.loads(printed.splitlines()[-1])
    return Finished(wall, usage.ru_utime + usage.ru_stime, peak, result)


def _peak(pid: int) -> float:
    """MiB that a process has had in memory at most; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def in_turn(lanes: Mapping[str, Callable[[], Finished]], count: int) -> dict[str, list[Finished]]:
    """Runs every lane once a round, another one first each time."""
    names = list(lanes)
    found: dict[str, list[Finished]] = {name: [] for name in names}
    for number in range(count):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(lanes[name]())
    return found


def ratio(ours: Sequence[Finished], theirs: Sequence[Finished], figure: Callable[[Finished], float]) -> Ratio:
    """Paired ratios of a figure."""
    return Ratio(tuple(figure(a) / figure(b) for a, b in zip(ours, theirs, strict=True)))
