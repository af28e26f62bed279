"""Timing things side by side on a machine that is not quiet.

Lanes are called in turn, in an order that rotates from round to round, and compared within a round: what slows the
machine for a while slows both sides of a ratio. A ratio is the median over the rounds, its spread their quartiles.
"""

import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Clock = Literal["wall", "processor"]
CLOCKS: Mapping[Clock, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Settings:
    """How a benchmark is to be run.

    Attributes:
        quick: tiny shapes and few rounds, to see that it works; its figures mean nothing.
        device: cpu or cuda.
        threads: of torch and of what it is compared with.
        clock: `processor` counts the time of this process alone, or of the two processes beside each other, for a
            machine that is busy with other things; where that cannot be known, the wall clock is used always.
        work: an empty folder for a benchmark to write in.
        model: a folder of a real model, for the rows that need one.
        text: a folder with validation.txt and test.txt, which goes with it.
        environments: the folder of the peers' virtual environments.
    """

    quick: bool
    device: str
    threads: int
    clock: Clock
    work: Path
    model: Path | None = None
    text: Path | None = None
    environments: Path = Path()

    def pick(self, full: int, quick: int) -> int:
        """The first, or the second where it has to be quick."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Ratio:
    """Paired ratios, of a round each."""

    pairs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.pairs)

    @property
    def low(self) -> float:
        """The lower quartile; the least of fewer than four."""
        return statistics.quantiles(self.pairs, n=4, method="inclusive")[0] if len(self.pairs) > 3 else min(self.pairs)

    @property
    def high(self) -> float:
        """The upper quartile; the greatest of fewer than four."""
        return statistics.quantiles(self.pairs, n=4, method="inclusive")[2] if len(self.pairs) > 3 else max(self.pairs)


@dataclass(frozen=True)
class Times:
    """Seconds of each lane, a figure a round."""

    seconds: Mapping[str, Sequence[float]]

    def ratio(self, ours: str, theirs: str) -> Ratio:
        """Seconds of one lane over those of another, round by round."""
        return Ratio(tuple(a / b for a, b in zip(self.seconds[ours], self.seconds[theirs], strict=True)))

    def median(self, lane: str) -> float:
        return statistics.median(self.seconds[lane])

    @property
    def medians(self) -> dict[str, float]:
        """Seconds of each lane, the median of its rounds."""
        return {f"seconds of {lane}": self.median(lane) for lane in self.seconds}


def rounds(lanes: Mapping[str, Callable[[], object]], *, count: int, warmup: int = 1, clock: Clock = "wall") -> Times:
    """Calls every lane once a round.

    Args:
        lanes: name -> what is timed.
        count: rounds that are timed.
        warmup: rounds before them that are not.
        clock: what seconds are counted by.
    """
    read = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in lanes}
    names = list(lanes)
    for number in range(-warmup, count):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            started = read()
            lanes[name]()
            if number >= 0:
                seconds[name].append(read() - started)
    return Times(seconds)


class Stepwise:
    """A training loop that is stepped from outside, so that several loops take turns.

    The loop runs in a thread of its own, and only ever while :meth:`__call__` waits for it.

    Args:
        run: the loop; it must call what it is given at the end of every step.
    """

    def __init__(self, run: Callable[[Callable[[], None]], object]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, args=(run,), daemon=True)
        self._started = False

    def __call__(self) -> None:
        """One step more; the first one starts the loop.

        Raises:
            RuntimeError: the loop has ended.
        """
        if self._started:
            self._go.release()
        else:
            self._started = True
            self._thread.start()
        self._done.acquire()
        if self._error is not None:
            raise RuntimeError(f"a loop that is stepped must go on; it ended: {self._error!r}") from self._error

    def close(self) -> None:
        """Ends the loop at the step it is at."""
        if self._started and self._thread.is_alive():
            self._closing = True
            self._go.release()
            self._thread.join()

    def _main(self, run: Callable[[Callable[[], None]], object]) -> None:
        try:
            run(self._pause)
            self._error = StopIteration("no more steps")
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        self._done.release()

    def _pause(self) -> None:
        self._done.release()
        self._go.acquire()
        if self._closing:
            raise _Closed


class _Closed(BaseException):
    """The loop's thread is to end."""


@contextmanager
def stepping(**loops: Callable[[Callable[[], None]], object]) -> Iterator[dict[str, Stepwise]]:
    """Several loops to be stepped in turn; they end with the block."""
    lanes = {name: Stepwise(run) for name, run in loops.items()}
    try:
        yield lanes
    finally:
        for lane in lanes.values():
            lane.close()


def resident() -> float:
    """MiB of this process that are in memory now."""
    return _status("VmRSS")


def reset_peak() -> None:
    """From now on :func:`peak` counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """MiB that this process had in memory at most, since its start or :func:`reset_peak`."""
    return _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def environment(threads: int) -> dict[str, str]:
    """The environment of a process that is timed."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }


def quiet() -> None:
    """Keeps transformers' warnings and progress bars out of the output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
