"""How sparsity grows over a training run: the curve on [0, 1], and the clock in optimizer steps. No torch.

A schedule maps progress x, clamped to [0, 1], to the share of the way from the initial to the final sparsity. A clock
says before which optimizer steps masks are updated and what x is there. Between updates a mask is held. Whoever needs
to know when masks change (the check of a spec, the training job, the description of a recipe) asks :func:`clock_of`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from prunegpt.errors import PruningError
from prunegpt.registry import SCHEDULES

Schedule = Callable[[float], float]
Unit = Literal["epochs", "steps", "fraction"]
Grid = Literal["regular", "sparseml"]

MAX_UPDATES = 2_000_000


def constant(x: float) -> float:
    """The final sparsity from the first update on: one-shot at the start, then held."""
    return 1.0


def linear(x: float) -> float:
    """The same number of weights at every update."""
    return _clamp(x)


def cubic(x: float) -> float:
    """y = 1 - (1 - x)³: fast while there is much to prune, slow at the end.

    Zhu & Gupta 2017, "To prune, or not to prune", eq. 1.
    """
    return 1.0 - (1.0 - _clamp(x)) ** 3


def inverse_cubic(x: float) -> float:
    """y = 1 - ∛(1 - x): slow at first, the bulk at the end (the `inverse_cubic` of SparseML recipes)."""
    return 1.0 - math.pow(1.0 - _clamp(x), 1.0 / 3.0)


def acdc(phase: int, *, phases: int) -> float:
    """Alternates dense (0) and compressed (1) phases, and ends compressed (Peste et al. 2021, "AC/DC", algorithm 1).

    The first phase is dense, and the last is compressed whatever its number, so that an odd number of phases ends with
    a compressed one of double length. Weights may come back in a dense phase. The one schedule that is a function of
    the number of the update instead of progress, so that it is the same on every grid.

    Args:
        phase: number of the update that begins it, from 0.
        phases: how many there are, at least 2.

    Raises:
        PruningError: fewer than two phases.
    """
    if phases < 2:
        raise PruningError(
            f"acdc needs a dense and a compressed phase, so `every` at most half of end - start, got {phases} phase. "
            "Make `every` smaller: it is the length of a phase."
        )
    return 1.0 if phase % 2 or phase >= phases - 1 else 0.0


@dataclass(frozen=True)
class Clock:
    """When masks are updated, in optimizer steps counted from 0; an update happens before its step.

    Attributes:
        updates: the steps, ascending. The first is the start of the schedule, the last its end.
    """

    updates: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.updates or self.updates[0] < 0 or any(b <= a for a, b in pairwise(self.updates)):
            raise PruningError(
                "masks are updated before one or more optimizer steps, from 0 on, in ascending order, got "
                f"{list(self.updates[:4])}. Set start and end so that 0 <= start <= end."
            )

    @classmethod
    def regular(cls, start: int, end: int, every: int = 1) -> "Clock":
        """Updates at start, start + every, …, and end; the last interval may be shorter.

        Raises:
            PruningError: the end comes before the start, or `every` is less than one step.
        """
        if not 0 <= start <= end:
            raise PruningError(
                f"a schedule must start at 0 or later and end no earlier than it starts, got steps {start} to {end}. "
                "Set start and end so that 0 <= start <= end."
            )
        if every < 1:
            raise PruningError(f"masks are updated every 1 or more optimizer steps, got {every}.")
        _bounded((end - start) // every)
        return cls((*range(start, end, every), end))

    @classmethod
    def sparseml(cls, start: float, end: float, every: float, per_epoch: int) -> "Clock":
        """The steps before which SparseML's legacy pruning modifiers update their masks.

        Their clock reads :func:`epoch_of`, and an update is due at the first step at or after `start`, then once the
        epoch is at least the *actual* one of the last update plus `every`, and at the first step at or after `end`.
        Each update that comes late by a part of a step delays all later ones, so that the grid drifts and has fewer
        updates than (end - start) / every + 1.

        Args:
            start: epochs; below 0 = at once.
            end: epochs.
            every: epochs; -1 = every step.
            per_epoch: optimizer steps of an epoch.
        """
        closing = _first_step(max(end, 0.0), per_epoch)
        steps = [_first_step(max(start, 0.0), per_epoch)]
        while steps[-1] < closing:
            following = steps[-1] + 1
            if every != -1:
                following = max(_first_step(epoch_of(steps[-1], per_epoch) + every, per_epoch), following)
            steps.append(min(following, closing))
            _bounded(len(steps))
        return cls((*steps[:-1], closing))

    @property
    def start(self) -> int:
        return self.updates[0]

    @property
    def end(self) -> int:
        return self.updates[-1]

    @property
    def phases(self) -> int:
        """How many intervals there are between updates."""
        return len(self.updates) - 1

    def progress(self, step: int) -> float:
        """How far a step is from start (0) to end (1), clamped; exactly 0 and 1 there."""
        if step >= self.end:
            return 1.0
        return max(0, step - self.start) / max(self.end - self.start, 1)

    def held(self, step: int) -> int | None:
        """The last update at or before a step; None before the first."""
        passed = bisect_right(self.updates, step)
        return self.updates[passed - 1] if passed else None

    def share(self, schedule: str, update: int) -> float:
        """How much of the way from the initial to the final sparsity a schedule asks for at an update, 0 to 1.

        Raises:
            UnknownPartError: there is no such schedule.
            PruningError: `acdc` with fewer than two phases.
        """
        part: Callable[..., float] = SCHEDULES.load(schedule)
        if part is acdc:
            return acdc(bisect_right(self.updates, update) - 1, phases=self.phases)
        return part(self.progress(update))


def clock_of(
    *, start: float, end: float | None, every: float, unit: Unit, grid: Grid, steps: int, per_epoch: int
) -> Clock:
    """The clock of a schedule as a spec gives it, each time rounded to the nearest optimizer step once.

    Args:
        start: the first update, in `unit`.
        end: the last update; None = half-way through the training.
        every: time from one update to the next, at least one step.
        unit: epochs, optimizer steps, or fraction of the training.
        grid: regular, or SparseML's drifting one, which counts in epochs and has an end.
        steps: optimizer steps of the training.
        per_epoch: optimizer steps, not batches: gradient accumulation counts as one.

    Raises:
        PruningError: pruning would not be over when training is, or the times are in no order.
    """
    if problem := clock_problem(start=start, end=end, unit=unit, grid=grid, limit=None):
        raise PruningError(problem)
    if per_epoch < 1 or steps < 1:
        raise PruningError(f"a training has 1 or more optimizer steps, got {steps}, {per_epoch} per epoch.")
    scale = {"epochs": per_epoch, "steps": 1, "fraction": steps}[unit]
    if grid == "sparseml":
        assert end is not None
        clock = Clock.sparseml(start, end, every, per_epoch)
        first, last = clock.start, clock.end
    else:
        first, last = round(start * scale), steps // 2 if end is None else round(end * scale)
    if last >= steps:
        raise PruningError(
            f"pruning must end before training does; its end is step {last} and the stage has {steps} steps "
            f"({per_epoch} per epoch). Set end to at most {(steps - 1) / scale:g} {unit}, or train longer."
        )
    if first > last:
        raise PruningError(f"pruning must start before it ends; it starts at step {first} and ends at step {last}.")
    return clock if grid == "sparseml" else Clock.regular(first, last, max(1, round(every * scale)))


def clock_problem(*, start: float, end: float | None, unit: Unit, grid: Grid, limit: float | None) -> str | None:
    """Why a schedule cannot be followed, as far as it is known before the steps are counted; None where it can.

    Args:
        limit: the length of the training in `unit`; None where it is not known yet. Other arguments: :func:`clock_of`.
    """
    if grid == "sparseml" and unit != "epochs":
        return f"clock sparseml counts in epochs; unit is {unit}. Set unit: epochs, or clock: regular."
    if grid == "sparseml" and end is None:
        return "clock sparseml needs the epoch of its last update; there is no end. Set end, or clock: regular."
    if limit is None:
        return None
    last = limit / 2 if end is None else end
    if last >= limit:
        return (
            f"pruning must end before training does; it ends at {last:g} and training at {limit:g} {unit}. Set a "
            "smaller end, or train longer."
        )
    if start > last:
        return (
            f"pruning must start before it ends; it starts at {start:g} and ends half-way, at {last:g} {unit}. Set "
            "end, or a smaller start."
        )
    return None


def epoch_of(step: int, per_epoch: int) -> float:
    """SparseML's clock before a step: k // S + (k % S) / S epochs, in floating point."""
    return step // per_epoch + (step % per_epoch) / per_epoch


def _first_step(epoch: float, per_epoch: int) -> int:
    """The first step whose clock reads at least `epoch`, found exactly: the clock is rounded."""
    if per_epoch < 1:
        raise PruningError(f"an epoch has 1 or more optimizer steps, got {per_epoch}.")
    step = max(math.floor(epoch * per_epoch) - 2, 0)
    while epoch_of(step, per_epoch) < epoch:
        step += 1
    return step


def _bounded(updates: int) -> None:
    if updates > MAX_UPDATES:
        raise PruningError(f"masks may be updated {MAX_UPDATES:,} times; this clock has more. Make `every` larger.")


def interpolate(y: float, final: float, initial: float = 0.0) -> float:
    """From `initial` at y = 0 to `final` at y = 1, exactly there and never outside."""
    if y <= 0.0:
        return initial
    if y >= 1.0:
        return final
    return min(max(initial + y * (final - initial), min(initial, final)), max(initial, final))


def _clamp(x: float) -> float:
    return min(max(x, 0.0), 1.0)
