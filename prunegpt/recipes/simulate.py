"""When masks change under a recipe, and how sparse they are then: SparseML's clock and curves, and ours."""

import math
import sys
from dataclasses import dataclass

from prunegpt.errors import PruneGPTError
from prunegpt.recipes.expressions import evaluate
from prunegpt.recipes.fields import as_number
from prunegpt.recipes.pruning import Pruning

MAX_UPDATES = 2_000_000

_EPSILON = sys.float_info.epsilon


class SimulationError(PruneGPTError, ValueError):
    """A recipe that cannot be simulated: no steps, or too many."""


@dataclass(frozen=True)
class Update:
    """One change of the masks, before the optimizer step `step`, counted from 0."""

    step: int
    epoch: float
    sparsity: float


def epoch_of(step: int, steps_per_epoch: int) -> float:
    """SparseML's clock before a step: k // S + (k % S) / S, in floating point."""
    return step // steps_per_epoch + (step % steps_per_epoch) / steps_per_epoch


def update_steps(start: float, end: float, every: float, steps_per_epoch: int) -> list[int]:
    """The steps before which the legacy dialect computes masks.

    An update is due at the first step at or after `start`, then where the epoch is at least that of the last *real*
    update plus `every`, so that the grid drifts; and once at the first step at or after `end`.

    Args:
        start: epochs; below 0 = at once.
        end: epochs.
        every: epochs; -1 = every step.
        steps_per_epoch: optimizer steps.

    Raises:
        SimulationError: fewer than one step an epoch, or more updates than :data:`MAX_UPDATES`.
    """
    check_steps(steps_per_epoch)
    closing = _first_step(max(end, 0.0), steps_per_epoch)
    steps = [_first_step(max(start, 0.0), steps_per_epoch)]
    if steps[0] >= closing:
        return [closing]
    while True:
        last = epoch_of(steps[-1], steps_per_epoch)
        following = steps[-1] + 1 if every == -1 else max(_first_step(last + every, steps_per_epoch), steps[-1] + 1)
        if following >= closing:
            return [*steps, closing]
        steps.append(following)
        if len(steps) > MAX_UPDATES:
            raise SimulationError(
                f"a simulation may have {MAX_UPDATES} updates, but has more. Give fewer steps an epoch."
            )


def _first_step(epoch: float, steps_per_epoch: int) -> int:
    """The first step whose clock reads at least `epoch`, found exactly: the clock is rounded."""
    step = max(math.floor(epoch * steps_per_epoch) - 2, 0)
    while epoch_of(step, steps_per_epoch) < epoch:
        step += 1
    return step


def check_steps(steps_per_epoch: int) -> None:
    """Raises SimulationError for fewer than one step an epoch."""
    if steps_per_epoch < 1:
        raise SimulationError(f"an epoch has 1 or more optimizer steps, but got {steps_per_epoch}.")


def updates_of(pruning: Pruning, steps_per_epoch: int, epochs: float | None = None) -> tuple[Update, ...]:
    """When a pruning modifier changes its masks, and to what sparsity.

    Args:
        pruning: from a recipe's meaning.
        steps_per_epoch: optimizer steps.
        epochs: of the training; updates after it are left out.

    Raises:
        SimulationError: no steps, too many, or a schedule whose end cannot be told.
        ExpressionError: a calc(...) schedule without a value.
    """
    check_steps(steps_per_epoch)
    if pruning.one_shot:
        return (Update(0, 0.0, pruning.final),)
    if pruning.dialect == "own":
        return _own_updates(pruning, steps_per_epoch, epochs)
    end = pruning.start if pruning.end is None else pruning.end
    if pruning.dialect == "legacy":
        steps = update_steps(pruning.start, end, pruning.every, steps_per_epoch)
    else:  # `update` is ignored: every step from start to end
        first, last = _first_step(pruning.start, steps_per_epoch), _first_step(end, steps_per_epoch)
        if last - first >= MAX_UPDATES:
            raise SimulationError(
                f"a simulation may have {MAX_UPDATES} updates, but has more. Give fewer steps an epoch."
            )
        steps = list(range(first, last + 1))
    if epochs is not None:
        steps = [step for step in steps if step < epochs * steps_per_epoch]
    return tuple(
        Update(step, epoch, sparsity_at(pruning, epoch))
        for step in steps
        for epoch in (epoch_of(step, steps_per_epoch),)
    )


def _own_updates(pruning: Pruning, steps_per_epoch: int, epochs: float | None) -> tuple[Update, ...]:
    """Our own clock: whole steps on a fixed grid from start to end."""
    total = None if epochs is None else max(round(epochs * steps_per_epoch), 1)
    if total is None and (pruning.end is None or pruning.unit == "fraction"):
        raise SimulationError("this schedule needs the number of epochs. Set train.num_train_epochs, or prune.end.")
    scale = {"epochs": steps_per_epoch, "steps": 1, "fraction": total or 1}[pruning.unit]
    first = round(pruning.start * scale)
    last = round(pruning.end * scale) if pruning.end is not None else max((total or 0) // 2, first)
    every = max(round(pruning.every * scale), 1)
    if (last - first) // every > MAX_UPDATES:
        raise SimulationError(f"a simulation may have {MAX_UPDATES} updates, but has more. Make `every` larger.")
    phases = math.ceil((last - first) / every)
    updates = []
    for step in [*range(first, last, every), last]:
        x = 1.0 if step >= last else (step - first) / (last - first)
        if pruning.schedule == "acdc":
            phase = math.floor(x * phases + 1e-9)
            share = 1.0 if phase % 2 or phase >= phases - 1 else 0.0
        else:
            share = 1.0 if pruning.schedule == "constant" else _legacy_share(pruning.schedule, x)
        sparsity = pruning.initial + share * (pruning.final - pruning.initial)
        updates.append(Update(step, epoch_of(step, steps_per_epoch), sparsity))
    return tuple(update for update in updates if total is None or update.step < total)


def sparsity_at(pruning: Pruning, epoch: float) -> float:
    """The sparsity that a schedule of SparseML asks for at an epoch.

    Args:
        pruning: with `schedule` as the recipe writes it.
        epoch: of an update.

    Raises:
        ExpressionError: a calc(...) schedule without a value.
    """
    end = pruning.start if pruning.end is None else pruning.end
    x = 1.0 if end <= pruning.start else min(max((epoch - pruning.start) / (end - pruning.start), 0.0), 1.0)
    initial, final = pruning.initial, pruning.final
    if pruning.schedule == "acdc":
        phase = math.floor((epoch - pruning.start) / pruning.every) if pruning.every > 0 else 1
        return 0.0 if phase % 2 == 0 and end - pruning.every > epoch else final
    if pruning.schedule == "multi_step":
        return _multi_step(pruning, epoch)
    if pruning.schedule.startswith("calc("):
        given = {name: as_number(value) for name, value in pruning.arguments.items()}
        names = {name: value for name, value in given.items() if value is not None}
        names |= {"start": pruning.start, "end": end, "update": pruning.every, "index": epoch}
        return float(evaluate(pruning.schedule[5:-1], {**names, "init_sparsity": initial, "final_sparsity": final}))
    if pruning.schedule in {"polynomial", "polynomial_decay"}:
        share = _polynomial(pruning, x)
    else:
        share = _legacy_share(pruning.schedule, x)
    if pruning.dialect == "legacy":
        if share <= _EPSILON:
            return initial
        if share >= 1 - _EPSILON:
            return final
    return share * (final - initial) + initial


def _legacy_share(schedule: str, x: float) -> float:
    if schedule == "linear":
        return x
    if schedule == "inverse_cubic":
        return float(1 - (1 - x) ** (1 / 3))
    return 1 - (1 - x) ** 3


def _polynomial(pruning: Pruning, x: float) -> float:
    """SparseML's polynomial x^n, and its polynomial_decay (x - 1)^n + 1, whose sign is wrong for even n."""
    exponent = as_number(pruning.arguments.get("exponent", 2)) or 2.0
    if pruning.schedule == "polynomial":
        return float(x**exponent)
    if not exponent.is_integer():  # a negative base has no such power: what was meant
        return float(1 - (1 - x) ** exponent)
    return float((x - 1) ** int(exponent) + 1)


def _multi_step(pruning: Pruning, epoch: float) -> float:
    current = pruning.initial
    steps = pruning.arguments.get("steps", [])
    for at, sparsity in sorted((float(at), float(value)) for at, value in steps):
        if epoch >= at:
            current = sparsity
    return current
