"""How sure a perplexity is, and whether two differ: bootstrap over the evaluation's windows, and over seeds.

A perplexity is measured by `lm/perplexity.py` and is in the record. Here its windows are drawn again, to see how
far it would move on other text of the same kind. Windows of one article resemble each other, so whole blocks of
neighbours are drawn: the moving-block bootstrap on a circle (Politis & Romano 1992, "A circular block-resampling
procedure for stationary data"), with blocks of the cube root of the number of windows, the rate of Hall, Horowitz and
Jing 1995 ("On blocking rules for the bootstrap with dependent data") without its constant.

Percentile intervals are too narrow when windows are few. They are widened as Hesterberg 2015 ("What teachers should
know about the bootstrap", expanded percentile) does, with Student's t in place of the normal distribution; p-values are
widened alike, so that an interval excludes "no difference" just when p is below 1 - level. With fewer than `FEW`
windows the intervals are too narrow all the same (87% instead of 95% with 4 independent windows), and tables note it.

Of several seeds: a difference between two configurations should hold for other seeds and on other text of the same
kind, so both sources of chance are counted. The mean difference of the losses, in nats per token, is divided by

    sqrt(variance over seeds + variance over windows)

where the first is s²/n of the differences of equal seeds (or, where the two share fewer than two seeds, the sum of both
sides' s²/n, as Welch does), and the second the block bootstrap's variance of the seeds' mean difference over windows.
The quotient is compared with Student's t with Satterthwaite's degrees of freedom. What varies over seeds and windows
together is counted in both terms, so the test errs towards "no difference".

A single run beside several counts as one more draw with their spread (Crawford & Howell 1998, "Comparing an
individual's test score against norms derived from small samples"), unless nothing in it is random.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from prunegpt.errors import ReportError

WindowLosses = NDArray[np.float64]
Places = NDArray[np.int64]

LEVEL = 0.95
RESAMPLES = 10_000
FEW = 8  # windows below which an interval cannot be trusted
DRAWN_AT_ONCE = 1 << 20  # block positions held in memory at a time
COUNTED = 1 << 22  # windows times resamples up to which the draws are kept, for all rows with as many windows
_ONE_THREAD = 1 << 17  # multiplications for which OpenBLAS takes no second thread, which would only spin
_LARGEST_LOSS = 700.0  # nats per token; the exponential of more is no float


@dataclass(frozen=True)
class Interval:
    """A value and how far it may be off.

    Raises:
        ReportError: the value is not between the ends: they were not made from the same runs.
    """

    value: float
    low: float
    high: float
    level: float = LEVEL

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ReportError(
                f"an interval must hold its own value; {self.value:g} is not in [{self.low:g}, {self.high:g}]. Take "
                "both from the same runs."
            )

    @classmethod
    def around(cls, value: float, low: float, high: float, level: float = LEVEL) -> "Interval":
        """The interval, widened to its value where resampling or rounding has left that outside."""
        return cls(value, min(low, value), max(high, value), level)


def two_sided(t: float, freedom: float) -> float:
    """The probability that Student's |T| is at least |t|; degrees of freedom need not be whole."""
    return float(2 * stdtr(freedom, -abs(t)))


def quantile(level: float, freedom: float) -> float:
    """The t that Student's |T| stays below with probability `level`: 0.95 gives 1.96 for many degrees of freedom."""
    return float(stdtrit(freedom, 0.5 + level / 2))


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same windows: the first against the second."""

    difference: Interval  # perplexity of the first less that of the second
    ratio: Interval  # perplexity of the first over that of the second
    p_value: float  # two-sided, of equal losses
    count: int  # windows, or seeds, of the test
    method: str  # in words
    partial: bool = False  # some seeds of one side are left out, for the other does not have them


def check_windows(windows: WindowLosses) -> WindowLosses:
    """Returns the windows as float64 [windows, 2].

    Raises:
        ReportError: another shape, fewer than two windows, a loss that is not finite or too large to be a
            perplexity, or no tokens.
    """
    checked = np.asarray(windows, dtype=np.float64)
    if checked.ndim != 2 or checked.shape[1] != 2:
        raise ReportError(
            f"window losses must have the shape [windows, 2] (summed loss, tokens), got {list(checked.shape)}. "
            "Evaluate the model again."
        )
    if len(checked) < 2:
        raise ReportError(
            f"an interval needs at least 2 windows, got {len(checked)}. Evaluate on more text or shorter windows."
        )
    finite = np.isfinite(checked).all() and (checked[:, 1] > 0).all()
    if not finite or (checked[:, 0] / checked[:, 1]).max() > _LARGEST_LOSS:
        raise ReportError(
            "window losses must be finite and their tokens positive; some are not: the model has diverged. It has no "
            "perplexity to give an interval for."
        )
    return checked


def check_paired(first: WindowLosses, second: WindowLosses) -> tuple[WindowLosses, WindowLosses]:
    """Both, checked to come from the same windows.

    Raises:
        ReportError: their numbers differ, or the tokens of some window.
    """
    one, two = check_windows(first), check_windows(second)
    if len(one) != len(two):
        raise ReportError(
            f"two models must be compared on the same windows; one has {len(one)} and the other {len(two)}. Evaluate "
            "both with one protocol."
        )
    differing = np.flatnonzero(one[:, 1] != two[:, 1])
    if len(differing):
        at = int(differing[0])
        raise ReportError(
            f"two models must be compared on the same windows; window {at} scores {one[at, 1]:g} tokens in one and "
            f"{two[at, 1]:g} in the other. Evaluate both with one protocol and one tokeniser."
        )
    return one, two


def mean_loss(windows: WindowLosses) -> float:
    """Nats a scored token over all windows."""
    return float(windows[:, 0].sum() / windows[:, 1].sum())


def default_block(windows: int) -> int:
    """Windows in a block: the cube root of their number, rounded down."""
    return max(1, math.floor(math.cbrt(windows) + 1e-9))


def resampled_sums(
    values: NDArray[np.float64], *, block: int | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Sums over the rows of `values` in each resample.

    Args:
        values: [windows, columns]; the rows wrap around.
        block: neighbouring rows that are drawn together; 1 draws rows independently, None takes `default_block`.

    Returns:
        [resamples, columns]; each resample sums exactly `windows` rows.

    Raises:
        ReportError: a block that is not between 1 and the number of windows.
    """
    count = len(values)
    block = default_block(count) if block is None else block
    if not 1 <= block <= count:
        raise ReportError(f"a block must hold 1 to {count} windows, got {block}. Leave it out for the default.")
    around = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(np.concatenate([values, values[:block]]), 0)])
    of_block = around[block : block + count] - around[:count]  # [windows, columns], by first row
    of_rest = around[count % block : count % block + count] - around[:count]  # [windows, columns]
    sums = np.empty((resamples, values.shape[1]))
    if count * resamples <= COUNTED:
        times, rests = _counted(count, block, resamples, seed)
        step = max(1, _ONE_THREAD // values.size)
        for begin in range(0, resamples, step):
            sums[begin : begin + step] = times[begin : begin + step] @ of_block  # [resamples, columns]
        sums += of_rest[rests]
        return sums
    for part, blocks, rests in _draws(count, block, resamples, seed):
        sums[part] = of_block[blocks].sum(axis=1) + of_rest[rests]  # [resamples, columns]
    return sums


def _draws(count: int, block: int, resamples: int, seed: int) -> Iterator[tuple[slice, Places, Places]]:
    """Some resamples at a time: which, the first rows of their blocks, and that of the rest, 0 where there is none."""
    whole, rest = divmod(count, block)
    draw = np.random.default_rng(seed)
    step = max(1, DRAWN_AT_ONCE // whole)
    for begin in range(0, resamples, step):
        size = min(resamples - begin, step)
        blocks = draw.integers(count, size=(size, whole))  # [resamples, blocks]
        rests = draw.integers(count, size=size) if rest else np.zeros(size, dtype=np.int64)  # [resamples]
        yield slice(begin, begin + size), blocks, rests


@lru_cache(maxsize=4)
def _counted(count: int, block: int, resamples: int, seed: int) -> tuple[NDArray[np.float64], Places]:
    """How many blocks of each resample begin at each row, [resamples, rows], and the first row of its rest."""
    times, rests = np.empty((resamples, count)), np.empty(resamples, dtype=np.int64)
    for part, blocks, rests[part] in _draws(count, block, resamples, seed):
        size = len(blocks)
        places = (blocks + np.arange(size)[:, None] * count).ravel()
        times[part] = np.bincount(places, minlength=size * count).reshape(size, count)
    return times, rests


def _widened(level: float, blocks: float) -> float:
    """The share of resamples to cut at each side, for an interval of that level from a number of independent blocks."""
    if blocks <= 1:
        return 0.0
    return float(ndtr(-math.sqrt(blocks / (blocks - 1)) * quantile(level, max(1.0, blocks - 1))))


def _p_value(differences: NDArray[np.float64], blocks: float) -> float:
    if blocks <= 1:
        return 1.0
    narrowing, freedom = math.sqrt((blocks - 1) / blocks), max(1.0, blocks - 1)
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    raw = min(1.0, 2 * (1 + beyond) / (len(differences) + 1))
    p_value = two_sided(float(ndtri(raw / 2)) * narrowing, freedom)
    if beyond:
        return p_value
    # all resamples are on one side: their number bounds p, and their distance shows how much below it is
    deviation = float(differences.std())
    t = abs(float(differences.mean())) / deviation if deviation else math.inf
    return min(p_value, two_sided(t * narrowing, freedom))


def _interval(value: float, resampled: NDArray[np.float64], level: float, blocks: float) -> Interval:
    cut = _widened(level, blocks)
    low, high = np.quantile(resampled, [cut, 1 - cut])
    return Interval.around(value, float(low), float(high), level)


def perplexity_interval(
    windows: WindowLosses,
    *,
    level: float = LEVEL,
    block: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The perplexity of all windows and its bootstrap interval; every token counts alike.

    Args:
        windows: [windows, 2], summed loss in nats and scored tokens of each.
        level: share of intervals that hold the perplexity of the text the windows were drawn from.

    Raises:
        ReportError: see `check_windows` and `resampled_sums`.
    """
    checked = check_windows(windows)
    sums = resampled_sums(checked, block=block, resamples=resamples, seed=seed)
    blocks = len(checked) / (block or default_block(len(checked)))
    return _interval(math.exp(mean_loss(checked)), np.exp(sums[:, 0] / sums[:, 1]), level, blocks)


def compare_windows(
    first: WindowLosses,
    second: WindowLosses,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedComparison:
    """Whether two models differ on other text of the same kind: both are measured on the same drawn windows.

    Args:
        first: [windows, 2], summed loss and tokens of each.
        second: the same windows under the other model.
        resamples: how many times the windows are drawn; where all of them agree on the sign, p is Student's with the
            resamples' standard deviation.

    Raises:
        ReportError: the windows differ in number or tokens; see `check_paired`.
    """
    one, two = check_paired(first, second)
    values = np.column_stack([one[:, 0], two[:, 0], one[:, 0] - two[:, 0], one[:, 1]])  # [windows, 4]
    sums = resampled_sums(values, resamples=resamples, seed=seed)  # [resamples, 4]
    means = sums[:, :3] / sums[:, 3:]
    blocks = len(one) / default_block(len(one))
    loss_one, loss_two = mean_loss(one), mean_loss(two)
    return PairedComparison(
        difference=_interval(
            math.exp(loss_one) - math.exp(loss_two), np.exp(means[:, 0]) - np.exp(means[:, 1]), LEVEL, blocks
        ),
        ratio=_interval(math.exp(loss_one - loss_two), np.exp(means[:, 2]), LEVEL, blocks),
        p_value=_p_value(means[:, 2], blocks),
        count=len(one),
        method="paired bootstrap over windows",
    )


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979, "A simple sequentially rejective multiple test procedure")."""
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


@dataclass(frozen=True)
class VarianceSource:
    """One source of chance: the variance it gives to a difference, and the degrees of freedom it is estimated with."""

    variance: float
    freedom: float


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean over seeds, and sample standard deviation, of n - 1; None for one seed.

    Raises:
        ReportError: no values, or one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ReportError(f"a mean over seeds needs finite values, got {values}. Leave out the runs that diverged.")
    return float(np.mean(values)), deviation(np.array(values))


def deviation(values: np.ndarray) -> float | None:
    """Sample standard deviation, of n - 1: zero where all values are equal, None for one value."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1)) if np.ptp(values) else 0.0


def spread_interval(values: list[float]) -> Interval:
    """The mean over seeds with Student's interval: the mean over all seeds, on this dataset.

    Raises:
        ReportError: fewer than two values, or one that is not finite.
    """
    mean, deviation = spread(values)
    if deviation is None:
        raise ReportError("an interval over seeds needs at least 2 seeds, got 1. Run more seeds.")
    half = quantile(LEVEL, len(values) - 1) * deviation / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def combined_test(difference: float, sources: list[VarianceSource]) -> tuple[float, Interval]:
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
    first: Mapping[int, WindowLosses],
    second: Mapping[int, WindowLosses],
    *,
    fixed: tuple[bool, bool] = (False, False),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedComparison:
    """Whether two configurations differ, over their seeds and windows; with one seed each, over windows alone.

    Args:
        first: seed -> [windows, 2], summed loss and tokens.
        second: the same of the other configuration.
        fixed: whether a configuration is the same for every seed, as a model that is only loaded.

    Raises:
        ReportError: no seeds, or windows that differ in number or tokens.
    """
    if not first or not second:
        raise ReportError("a comparison needs at least one measured run on each side; one side has none.")
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
        over_seeds = [VarianceSource(_variance(apart) / len(common), len(common) - 1)]
    else:
        over_seeds = _unpaired(losses_one, losses_two, fixed)
    of_windows = np.mean([w[:, 0] for w in ones], axis=0) - np.mean([w[:, 0] for w in twos], axis=0)  # [windows]
    values = np.column_stack([of_windows, reference[:, 1]])  # [windows, 2]
    sums = resampled_sums(values, resamples=resamples, seed=seed)  # [resamples, 2]
    blocks = len(values) / default_block(len(values))
    over_windows = _variance(list(sums[:, 0] / sums[:, 1])) * blocks / max(1.0, blocks - 1)

    loss = mean_loss(values)
    p_value, apart_by = combined_test(loss, [*over_seeds, VarianceSource(over_windows, max(1.0, blocks - 1))])
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
    return PairedComparison(difference, ratio, p_value, count, method, partial)


def _variance(values: list[float]) -> float:
    return float(np.var(values, ddof=1))


def _unpaired(first: list[float], second: list[float], fixed: tuple[bool, bool]) -> list[VarianceSource]:
    """What the seeds of each side add; a single random run takes the other side's spread."""
    sides = [(losses, is_fixed) for losses, is_fixed in zip((first, second), fixed, strict=True)]
    several = [losses for losses, _ in sides if len(losses) > 1]
    if len(several) == 2:
        return [VarianceSource(_variance(losses) / len(losses), len(losses) - 1) for losses in several]
    (losses,) = several
    of_single = 0.0 if any(len(own) == 1 and is_fixed for own, is_fixed in sides) else 1.0
    return [VarianceSource(_variance(losses) * (1 / len(losses) + of_single), len(losses) - 1)]
