"""Groups of trials: those that agree in some fields, with mean and spread of every figure.

A mean over figures that were not measured alike is none: of an evaluation's figures only those with equal comparison
keys are averaged, as in tables (`report/measure.py`), and where they differ the group names the difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunegpt.records import TrialResult
from prunegpt.report.field import TrialField
from prunegpt.report.format import is_number
from prunegpt.report.query import equals
from prunegpt.report.statistics import deviation


@dataclass(frozen=True)
class Spread:
    """What a figure comes to in a group.

    Attributes:
        count: trials that have it.
        deviation: sample standard deviation, of n - 1; None of one trial.
        why: why there is no mean, where trials have the figure; then the rest is None.
    """

    count: int
    mean: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Group:
    """Trials that agree in the fields that were grouped by.

    Attributes:
        values: of those fields, in their order.
        where: the filter of its trials.
    """

    values: tuple[Any, ...]
    trials: tuple[TrialResult, ...]
    where: str

    def spread(self, field: TrialField) -> Spread:
        """Mean and spread of a numeric field over the trials that have it."""
        having = [(trial, value) for trial in self.trials if is_number(value := field.of(trial))]
        if not having:
            return Spread(0)
        if field.measured:
            seen = [trial.under(field.evaluation).measured for trial, _ in having]
            keys = [measured.comparison_key for measured in seen if measured]
            other = next((key for key in keys if key != keys[0]), None)
            if other is not None:
                return Spread(len(having), why=f"not comparable: {keys[0].differs(other)}")
        values = np.array([float(value) for _, value in having])
        low, high = float(values.min()), float(values.max())
        scale = max(abs(low), abs(high)) or 1.0  # of numbers near the largest a sum is infinite
        mean = float((values / scale).mean() * scale)
        spread = deviation(values / scale)
        if spread is not None:
            spread = spread * scale if math.isfinite(spread * scale) else None
        return Spread(len(having), min(max(mean, low), high), spread, low, high)


def grouped(trials: Sequence[TrialResult], by: Sequence[TrialField]) -> list[Group]:
    """The groups of trials that have equal values in some fields, in the order they are first met."""
    found: dict[tuple[Any, ...], list[TrialResult]] = {}
    for trial in trials:
        found.setdefault(tuple(_fixed(field.of(trial)) for field in by), []).append(trial)
    return [
        Group(
            tuple(value for _, value in values),
            tuple(some),
            " and ".join(equals(field, value) for field, (_, value) in zip(by, values, strict=True)),
        )
        for values, some in found.items()
    ]


def _fixed(value: Any) -> tuple[bool, Any]:
    """A value to group by; True and 1 are different."""
    if isinstance(value, list | tuple):
        return False, tuple(_fixed(one)[1] for one in value)
    return isinstance(value, bool), value
