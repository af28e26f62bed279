"""How sparsity grows over a training run: the curve on [0, 1], and the clock in optimizer steps.

A schedule maps progress x, clamped to [0, 1], to the share of the way from the initial to the final sparsity. A clock
says at which optimizer steps masks are updated and what x is there. Between updates a mask is held.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from prunegpt.errors import PruningError
from prunegpt.registry import SCHEDULES

Schedule = Callable[[float], float]

_ROUNDING = 1e-9  # what x · phases may lack of a whole number by rounding


def constant(x: float) -> float:
    """The final sparsity from the first update on: one-shot at the start, then held."""
    return 1.0


def one_shot(x: float) -> float:
    """Nothing before the end, all of it there: train dense, prune once."""
    return 1.0 if x >= 1.0 else 0.0


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


def acdc(x: float, *, phases: int) -> float:
    """Alternates dense (0) and compressed (1) phases, and ends compressed (Peste et al. 2021, "AC/DC", algorithm 1).

    Phases are of equal length, the first is dense, and the last is compressed whatever its number, so that an odd
    number of phases ends with a compressed one of double length. Weights may come back in a dense phase.

    Args:
        x: progress, clamped to [0, 1].
        phases: how many there are from x = 0 to x = 1, at least 2.

    Raises:
        PruningError: fewer than two phases.
    """
    if phases < 2:
        raise PruningError(
            f"acdc needs a dense and a compressed phase, so `every` at most half of end - start, but got {phases} "
            f"phase. Make `every` smaller: it is the length of a phase."
        )
    phase = math.floor(_clamp(x) * phases + _ROUNDING)
    return 1.0 if phase % 2 or phase >= phases - 1 else 0.0


@dataclass(frozen=True)
class Clock:
    """When masks are updated, in optimizer steps counted from 0; an update happens before its step.

    Attributes:
        start: the first update.
        end: the last one.
        every: steps from one update to the next; the last interval may be shorter.
    """

    start: int
    end: int
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise PruningError(
                f"a schedule must start at 0 or later and end no earlier than it starts, but got steps {self.start} to "
                f"{self.end}. Set start and end so that 0 <= start <= end."
            )
        if self.every < 1:
            raise PruningError(f"masks are updated every 1 or more optimizer steps, but got {self.every}.")

    @classmethod
    def from_epochs(cls, start: float, end: float, every: float, steps_per_epoch: int) -> "Clock":
        """The clock of a schedule in epochs, each rounded to the nearest optimizer step once, and `every` to at least
        1.

        Args:
            start: epochs before the first update.
            end: epochs before the last one.
            every: epochs from one update to the next.
            steps_per_epoch: optimizer steps, not batches: gradient accumulation counts as one.
        """
        if steps_per_epoch < 1:
            raise PruningError(f"an epoch has 1 or more optimizer steps, but got {steps_per_epoch}.")
        return cls(
            start=round(start * steps_per_epoch),
            end=round(end * steps_per_epoch),
            every=max(1, round(every * steps_per_epoch)),
        )

    def updates(self) -> list[int]:
        """The steps before which masks are updated: start, start + every, …, and end."""
        return [*range(self.start, self.end, self.every), self.end]

    @property
    def phases(self) -> int:
        """How many intervals `every` makes of start to end, the last one whole or not."""
        return math.ceil((self.end - self.start) / self.every)

    def progress(self, step: int) -> float:
        """How far a step is from start (0) to end (1), clamped; exactly 0 and 1 there."""
        if step >= self.end:
            return 1.0
        return max(0.0, (step - self.start) / (self.end - self.start))

    def held(self, step: int) -> int | None:
        """The last update at or before a step; None before the first."""
        if step < self.start:
            return None
        if step >= self.end:
            return self.end
        return step - (step - self.start) % self.every

    def target(self, step: int, *, schedule: Schedule, final: float, initial: float = 0.0) -> float:
        """The sparsity a model has at a step, which is that of the last update; 0 before the first.

        Args:
            step: counted from 0.
            schedule: as from :func:`load_schedule`.
            final: sparsity at the end.
            initial: sparsity at the first update.
        """
        update = self.held(step)
        return 0.0 if update is None else interpolate(schedule(self.progress(update)), final, initial)


def interpolate(y: float, final: float, initial: float = 0.0) -> float:
    """From `initial` at y = 0 to `final` at y = 1, exactly there and never outside."""
    if y <= 0.0:
        return initial
    if y >= 1.0:
        return final
    return min(max(initial + y * (final - initial), min(initial, final)), max(initial, final))


def load_schedule(name: str, clock: Clock) -> Schedule:
    """The schedule of a name, with the phases of the clock where it has phases.

    Raises:
        UnknownPartError: there is no such schedule.
        PruningError: `acdc` on a clock with fewer than two phases.
    """
    schedule: Callable[..., float] = SCHEDULES.load(name)
    if schedule is acdc:
        acdc(0.0, phases=clock.phases)  # refuses a clock with too few
        return partial(acdc, phases=clock.phases)
    return schedule


def sparseml_updates(start_epoch: float, end_epoch: float, update_frequency: float, steps_per_epoch: int) -> list[int]:
    """The optimizer steps before which SparseML's legacy pruning modifiers update their masks.

    Its clock reads k // S + (k % S) / S epochs before step k, in floating point, and an update is due once that is at
    least the *actual* epoch of the last update plus the frequency. Each update that comes late by a part of a step
    delays all later ones, so that the grid drifts and has fewer updates than (end - start) / frequency + 1.

    Args:
        start_epoch: the first update; negative = at once.
        end_epoch: the last update.
        update_frequency: epochs; -1 = every step.
        steps_per_epoch: S.
    """
    if steps_per_epoch < 1:
        raise PruningError(f"an epoch has 1 or more optimizer steps, but got {steps_per_epoch}.")
    updates: list[int] = []
    last = -math.inf
    step = 0
    while True:
        epoch = step // steps_per_epoch + (step % steps_per_epoch) / steps_per_epoch
        if epoch >= end_epoch:
            return [*updates, step]
        due = not updates or update_frequency == -1 or epoch >= last + update_frequency
        if epoch >= start_epoch and due:
            updates.append(step)
            last = epoch
        step += 1


def _clamp(x: float) -> float:
    return min(max(x, 0.0), 1.0)
