"""A running attempt as the coordinator sees it: its files are followed into the store, and its end is read."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from prunegpt.launch.base import Exited
from prunegpt.launch.log import LOG, last_lines
from prunegpt.points import Point, read_points
from prunegpt.records import CALIBRATED, LAYERS_PRUNED, TOTAL_STEPS, AttemptRecord
from prunegpt.spec.plan import TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.events import AttemptProgress
from prunegpt.sweep.failures import Ending, unrecorded
from prunegpt.sweep.live import eta_of
from prunegpt.sweep.scheduler import name_of

_LOG_LINES = 20  # that the store keeps of an attempt which did not finish
_FIRST_STEP = 1800.0  # seconds; an attempt that is silent for longer may hang


@dataclass
class Attempt:
    """One attempt that was submitted, or will be: it has a handle once a launcher has taken it.

    Args:
        offset: bytes of points.jsonl that are stored.
        cached: stages that were published when it started.
        ending: the end it was asked for.
        deadline: when it is killed, by the monotonic clock, having been asked.
    """

    id: int
    number: int
    trial: TrialPlan
    folder: Path
    handle: str = ""
    started: float = field(default_factory=time.time)
    offset: int = 0
    cached: int = 0
    ending: Ending | None = None
    deadline: float = math.inf
    clock: Callable[[], float] = time.monotonic  # seconds that only grow
    _latest: dict[str, Point] = field(default_factory=dict)  # of this stage, by the name of the curve
    _stage: int = -1
    _heard: float | None = None  # its last heartbeat, or its first poll
    _longest: float = 0.0  # seconds that it has been silent for between two points

    def patience(self, least: float) -> float:
        """Seconds that it gets for a checkpoint: at least this many, and enough for two of its longest steps so far.

        A checkpoint is written between two steps; a kill in mid-step would cost all since the last one. Of an attempt
        that is in its first step, no more is known than how long that has taken by now.
        """
        silent = 0.0 if self._heard is None else self.clock() - self._heard
        return max(least, 2 * self._longest, min(silent, _FIRST_STEP))

    def store_points(self, store: Store) -> list[Point]:
        """Stores what points.jsonl has grown by, and gives it."""
        try:
            points, offset = read_points(self.folder / "points.jsonl", self.offset)
        except OSError:  # its node's file system is away: they are read when it is back
            return []
        now = self.clock()
        if points or self._heard is None:
            self._longest = max(self._longest, now - (now if self._heard is None else self._heard))
            self._heard = now
        if offset != self.offset:
            store.add_points(self.id, points, offset=offset)
            self.offset = offset
        return points

    def progress(self, points: list[Point]) -> AttemptProgress | None:
        """What to report about new points."""
        known = [point for point in points if 0 <= point.stage < len(self.trial.stages)]
        if not known:
            return None
        for point in known:
            if point.stage != self._stage:
                self._stage, self._latest = point.stage, {}
            self._latest[point.name] = point
        last = known[-1]
        begun = self._latest.get(TOTAL_STEPS)
        stage = self.trial.stages[last.stage]
        planned = stage.training.train.get("max_steps") if stage.training else None
        total = begun.value if begun and begun.value else planned

        def value(name: str) -> float | None:
            return self._latest[name].value if name in self._latest else None

        return AttemptProgress(
            trial=name_of(self.trial),
            index=last.stage,
            kind=stage.kind,
            step=last.step,
            total=int(total) if isinstance(total, (int, float)) and total > 0 else None,
            epoch=last.epoch,
            tokens=last.tokens,
            loss=value("loss"),
            perplexity=value("perplexity"),
            eta=eta_of(begun, last),
            calibrated=share if (share := value(CALIBRATED)) != 1 and LAYERS_PRUNED not in self._latest else None,
        )

    def record(self, exited: Exited | None) -> AttemptRecord:
        """How it ended: what its record.json says, or where there is none what its process's end says."""
        path = self.folder / "record.json"
        problem = ""
        try:
            found: AttemptRecord = AttemptRecord.read(path)
            update: dict[str, object] = {
                "sweep": self.trial.sweep,
                "trial": self.trial.name,
                "attempt": self.number,
            }
            if found.state == "stopped" and exited is not None and exited.reason == "preempted":
                update |= {"reason": "preempted", "error": "its place was taken for other work; a checkpoint is kept."}
            return found.model_copy(update=update)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            problem = f"its record.json cannot be read: {error}"
        log = self.last_words(40)
        reason, message = unrecorded(exited, log)
        return AttemptRecord(
            sweep=self.trial.sweep,
            trial=self.trial.name,
            attempt=self.number,
            state="stopped" if reason == "stopped" else "failed",
            reason=reason,
            error=problem or message,
            trace=log,
            started=self.started,
            ended=time.time(),
        )

    def last_words(self, lines: int = _LOG_LINES) -> str:
        """The end of its log."""
        return last_lines(self.folder / LOG, lines)


def readable(error: Exception) -> str:
    """The first line of an error that validation may have made long."""
    return f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else str(error)


def last_number(home: Path) -> int:
    """The highest number of the attempt folders of a trial; a database that was lost does not know them."""
    numbers = [path.name.removeprefix("attempt-") for path in home.glob("attempt-*")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)
