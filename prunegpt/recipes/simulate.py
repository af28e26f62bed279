"""When masks change under a recipe, and how sparse they are then: SparseML's clock and curves, and ours."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from prunegpt.errors import PruneGPTError, PruningError
from prunegpt.recipes.expressions import evaluate
from prunegpt.recipes.fields import as_number
from prunegpt.recipes.pruning import Pruning
from prunegpt.spec.schedules import Clock, clock_of, epoch_of, interpolate

_EPSILON = sys.float_info.epsilon


class SimulationError(PruneGPTError, ValueError):
    """A recipe that cannot be simulated: no steps, or too many."""


@dataclass(frozen=True)
class Update:
    """One change of the masks, before the optimizer step `step`, counted from 0."""

    step: int
    epoch: float
    sparsity: float


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
    if pruning.one_shot:
        return (Update(0, 0.0, pruning.final),)
    end = pruning.start if pruning.end is None else pruning.end
    try:
        if pruning.dialect == "own":
            return _own_updates(pruning, steps_per_epoch, epochs)
        every = pruning.every if pruning.dialect == "legacy" else -1  # `update` is ignored: every step to the end
        steps: Sequence[int] = Clock.sparseml(pruning.start, end, every, steps_per_epoch).updates
    except PruningError as error:
        raise SimulationError(str(error)) from error
    if epochs is not None:
        steps = [step for step in steps if step < epochs * steps_per_epoch]
    return tuple(
        Update(step, epoch, sparsity_at(pruning, epoch))
        for step in steps
        for epoch in (epoch_of(step, steps_per_epoch),)
    )


def _own_updates(pruning: Pruning, steps_per_epoch: int, epochs: float | None) -> tuple[Update, ...]:
    """Our own clock: whole steps on a fixed grid from start to end."""
    if epochs is None and (pruning.end is None or pruning.unit == "fraction"):
        raise SimulationError("this schedule needs the number of epochs. Set train.num_train_epochs, or prune.end.")
    clock = clock_of(
        start=pruning.start,
        end=pruning.end,
        every=pruning.every,
        unit=pruning.unit,
        grid="regular",
        steps=sys.maxsize if epochs is None else max(round(epochs * steps_per_epoch), 1),
        per_epoch=steps_per_epoch,
    )
    return tuple(
        Update(
            step,
            epoch_of(step, steps_per_epoch),
            interpolate(clock.share(pruning.schedule, step), pruning.final, pruning.initial),
        )
        for step in clock.updates
    )


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
