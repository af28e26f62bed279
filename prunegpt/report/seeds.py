"""Several seeds of one configuration: their spread, and whether two configurations differ.

A difference between two configurations should hold for other seeds and on other text of the same kind, so both sources
of chance are counted. The mean difference of the losses, in nats per token, is divided by

    sqrt(variance over seeds + variance over windows)

where the first is s²/n of the differences of equal seeds (or, where the two share fewer than two seeds, the sum of both
sides' s²/n, as Welch does), and the second the block bootstrap's variance of the seeds' mean difference over windows.
The quotient is compared with Student's t with Satterthwaite's degrees of freedom. What varies over seeds and windows
together is counted in both terms, so the test errs towards "no difference".

A single run beside several counts as one more draw with their spread (Crawford & Howell 1998, "Comparing an
individual's test score against norms derived from small samples"), unless nothing in it is random.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prunegpt.errors import ReportError
from prunegpt.report.statistics import (
    LEVEL,
    RESAMPLES,
    Comparison,
    Interval,
    Windows,
    check_paired,
    compare_windows,
    default_block,
    mean_loss,
    quantile,
    resampled_sums,
    two_sided,
)


@dataclass(frozen=True)
class Source:
    """One source of chance: the variance it gives to a difference, and the degrees of freedom it is estimated with."""

    variance: float
    freedom: float


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean over seeds, and sample standard deviation, of n - 1; None for one seed.

    Raises:
        ReportError: no values, or one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ReportError(f"a mean over seeds needs finite values, but got {values}. Leave out the runs that diverged.")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def spread_interval(values: list[float]) -> Interval:
    """The mean over seeds with Student's interval: the mean over all seeds, on this dataset.

    Raises:
        ReportError: fewer than two values, or one that is not finite.
    """
    mean, deviation = spread(values)
    if deviation is None:
        raise ReportError("an interval over seeds needs at least 2 seeds, but got 1. Run more seeds.")
    half = quantile(LEVEL, len(values) - 1) * deviation / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def combined_test(difference: float, sources: list[Source]) -> tuple[float, Interval]:
    """p-value and interval of a difference that several independent sources of chance bear on."""
    variance = sum(source.variance for source in sources)
    if variance == 0:
        return (1.0 if difference == 0 else 0.0), Interval(difference, difference, difference)
    weight = sum(source.variance**2 / source.freedom for source in sources)
    freedom = variance**2 / weight if weight else 1.0
    error = math.sqrt(variance)
    half = quantile(LEVEL, freedom) * error
    return two_sided(difference / error, freedom), Interval(difference, difference - half, difference + half)


def compare_seeds(
    first: Mapping[int, Windows],
    second: Mapping[int, Windows],
    *,
    fixed: tuple[bool, bool] = (False, False),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Whether two configurations differ, over their seeds and windows; with one seed each, over windows alone.

    Args:
        first: seed -> [windows, 2], summed loss and tokens.
        second: the same of the other configuration.
        fixed: whether a configuration is the same for every seed, as a model that is only loaded.

    Raises:
        ReportError: no seeds, or windows that differ in number or tokens.
    """
    if not first or not second:
        raise ReportError("a comparison needs at least one measured run on each side, but one side has none.")
    if len(first) == 1 and len(second) == 1:
        one, two = next(iter(first.values())), next(iter(second.values()))
        return compare_windows(one, two, resamples=resamples, seed=seed)
    reference = next(iter(first.values()))
    for windows in [*first.values(), *second.values()]:
        check_paired(reference, windows)
    common = sorted(set(first) & set(second))
    paired = len(common) >= 2
    ones = [first[key] for key in common] if paired else list(first.values())
    twos = [second[key] for key in common] if paired else list(second.values())

    losses_one, losses_two = [mean_loss(w) for w in ones], [mean_loss(w) for w in twos]
    if paired:
        apart = [a - b for a, b in zip(losses_one, losses_two, strict=True)]
        over_seeds = [Source(_variance(apart) / len(common), len(common) - 1)]
    else:
        over_seeds = _unpaired(losses_one, losses_two, fixed)
    of_windows = np.mean([w[:, 0] for w in ones], axis=0) - np.mean([w[:, 0] for w in twos], axis=0)  # [windows]
    values = np.column_stack([of_windows, reference[:, 1]])  # [windows, 2]
    sums = resampled_sums(values, resamples=resamples, seed=seed)  # [resamples, 2]
    blocks = len(values) / default_block(len(values))
    over_windows = _variance(list(sums[:, 0] / sums[:, 1])) * blocks / max(1.0, blocks - 1)

    loss = mean_loss(values)
    p_value, apart_by = combined_test(loss, [*over_seeds, Source(over_windows, max(1.0, blocks - 1))])
    ratio = Interval(math.exp(loss), math.exp(apart_by.low), math.exp(apart_by.high))
    mean_one, mean_two = (float(np.mean(np.exp(losses))) for losses in (losses_one, losses_two))
    slope = math.sqrt(mean_one) * math.sqrt(mean_two)  # of exp, between the two losses
    difference = Interval(
        mean_one - mean_two,
        mean_one - mean_two + slope * (apart_by.low - loss),
        mean_one - mean_two + slope * (apart_by.high - loss),
    )
    count = len(common) if paired else min(len(ones), len(twos))
    method = f"{'paired' if paired else 'Welch'} t over seeds and windows"
    partial = paired and len(common) < max(len(first), len(second))
    return Comparison(difference, ratio, p_value, count, method, partial)


def _variance(values: list[float]) -> float:
    return float(np.var(values, ddof=1))


def _unpaired(first: list[float], second: list[float], fixed: tuple[bool, bool]) -> list[Source]:
    """What the seeds of each side add; a single random run takes the other side's spread."""
    sides = [(losses, is_fixed) for losses, is_fixed in zip((first, second), fixed, strict=True)]
    several = [losses for losses, _ in sides if len(losses) > 1]
    if len(several) == 2:
        return [Source(_variance(losses) / len(losses), len(losses) - 1) for losses in several]
    (losses,) = several
    of_single = 0.0 if any(len(own) == 1 and is_fixed for own, is_fixed in sides) else 1.0
    return [Source(_variance(losses) * (1 / len(losses) + of_single), len(losses) - 1)]
