"""Seconds of the processor that processes with a mark in their environment took, however they were started.

Some start others that are no children of theirs, so that no usage of children counts them.
"""

import os
from pathlib import Path

MARK = "PRUNEGPT_BENCH_MARK"
_TICK = os.sysconf("SC_CLK_TCK")


class Spent:
    """Called, it is what they took so far; what one takes after the last call before its end is not counted."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._marked: dict[tuple[str, str], bool] = {}  # by process and start
        self._ticks: dict[tuple[str, str], int] = {}

    def __call__(self) -> float:
        for place in Path("/proc").iterdir():
            if not place.name.isdigit():
                continue
            try:
                fields = (place / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
                who = (place.name, fields[19])
                if who not in self._marked:
                    self._marked[who] = self._mark in (place / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended, or is of another user
                continue
            if self._marked[who]:
                self._ticks[who] = int(fields[11]) + int(fields[12])  # user and system
        return sum(self._ticks.values()) / _TICK
