"""The perplexity of one row, over its seeds, with its interval; which rows are best, and which are unlike most."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunegpt.errors import ReportError, counted
from prunegpt.records import ComparisonKey, Evaluation, TrialResult
from prunegpt.report.config import builtin_method
from prunegpt.report.statistics import (
    FEW,
    LEVEL,
    Interval,
    PairedComparison,
    WindowLosses,
    check_windows,
    compare_seeds,
    compare_windows,
    holm,
    mean_loss,
    perplexity_interval,
    spread,
    spread_interval,
)
from prunegpt.root import Root, damage

WindowsOf = Callable[[TrialResult], WindowLosses | None]  # the per-window losses of a trial's last evaluation, or None

_UNCHANGING = ("load", "pretrain", "prune", "shrink")  # kinds of stages that no seed changes, but for methods that draw
_TOLERANCE = 1e-6  # nats per token, between the record and its windows
_TEXT_SHOWN = 12  # digits of a text's fingerprint
ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Measured:
    """What the finished runs of a row came to, all measured alike."""

    perplexity: float  # mean over seeds
    count: int  # runs
    interval: Interval | None  # of the perplexity
    key: ComparisonKey
    windows: Mapping[int, WindowLosses]  # by seed; empty where they are not kept
    fixed: bool  # the same for every seed
    notes: tuple[str, ...] = ()  # what readers must know, a footnote each


@dataclass(frozen=True)
class Standing:
    """A row beside the best of those that were measured as it was."""

    best: bool
    tied: bool = False  # not significantly different from the best
    comparison: PairedComparison | None = None  # against the best; None for the best itself, or where not tested
    p_value: float | None = None  # adjusted for the number of rows (Holm)
    difference: float | None = None  # perplexity less that of the best; of the runs that were tested, where it was
    note: str = ""


@dataclass(frozen=True)
class Typical:
    """A row beside the pruned row of median perplexity among those measured as it was."""

    ratio: Interval  # perplexity of the row over that of the median row
    p_value: float  # paired bootstrap over windows, adjusted for the number of rows (Holm)
    is_median: bool = False

    @property
    def differs(self) -> bool:
        return self.p_value < ALPHA


def stored_windows(root: Root) -> WindowsOf:
    """A function from a trial to the windows of its last stage, or None where they are not in the root."""

    def find(trial: TrialResult) -> WindowLosses | None:
        if not trial.stages or trial.evaluation is None:
            return None
        folder = root.evaluation(trial.stages[-1].key, trial.evaluation.key)
        if damage(folder, deep=True):
            return None
        try:
            return np.asarray(np.load(folder / "windows.npy", allow_pickle=False), dtype=np.float64)
        except (OSError, ValueError):
            return None

    return find


def check_belongs(windows: WindowLosses, evaluation: Evaluation) -> None:
    """Raises ReportError where the windows are not those that the recorded loss and perplexity were computed from."""
    found = mean_loss(windows)
    recorded = math.log(evaluation.perplexity) if evaluation.perplexity else math.inf
    for what, value in (("loss", evaluation.loss), ("log perplexity", recorded)):
        if value is None or abs(found - value) > _TOLERANCE * max(1.0, found):
            raise ReportError(
                f"the windows of an evaluation must give its recorded {what}; they give {found:.6f} and the record "
                f"says {value}. One of the two was changed: `prunegpt doctor --repair`, then run the sweep again."
            )


def measure(trials: Sequence[TrialResult], windows: WindowsOf) -> Measured | None:
    """The perplexity of the runs that have one; None where none has.

    Raises:
        ReportError: the runs of one row were not measured alike, or a figure is not that of its windows.
    """
    done = [(trial, found) for trial in trials if (found := trial.measured) and found.perplexity is not None]
    if not done:
        return None
    key = done[0][1].comparison_key
    for trial, evaluation in done:
        if evaluation.comparison_key != key:
            raise ReportError(not_alike(done[0][0].name, trial.name, key.differs(evaluation.comparison_key)))
    values = [evaluation.perplexity for _, evaluation in done if evaluation.perplexity is not None]
    notes: list[str] = []
    kept = _windows(done, windows, notes)
    mean, _ = spread(values)
    interval = None
    if len(values) > 1:
        interval = spread_interval(values)
    elif kept:
        only = next(iter(kept.values()))
        resampled = perplexity_interval(only)
        interval = Interval.around(mean, resampled.low, resampled.high)
        if len(only) < FEW:
            notes.append(f"{counted(len(only), 'window')}: too few to trust the interval and the tests")
    return Measured(
        perplexity=mean,
        count=len(values),
        interval=interval,
        key=key,
        windows=kept,
        fixed=all(_is_fixed(trial) for trial, _ in done) and len({trial.stages[-1].key for trial, _ in done}) == 1,
        notes=tuple(notes),
    )


def not_alike(first: str, second: str, difference: str) -> str:
    """Why two runs of one row have no mean."""
    return (
        f"seeds of one row must be measured alike; between {first} and {second} {difference}. Evaluate them again in "
        "one way."
    )


def _windows(
    done: Sequence[tuple[TrialResult, Evaluation]], windows: WindowsOf, notes: list[str]
) -> dict[int, WindowLosses]:
    """Seed -> windows, where all runs have such as give an interval."""
    kept: dict[int, WindowLosses] = {}
    for trial, evaluation in done:
        found = windows(trial)
        if found is None:
            continue
        try:
            checked = check_windows(found)
        except ReportError as error:
            notes.append(f"{trial.name}: {error}".removesuffix("."))
            continue
        try:
            check_belongs(checked, evaluation)
        except ReportError as error:
            raise ReportError(f"{trial.address}: {error}") from error
        kept[trial.seed] = checked
    return kept if len(kept) == len(done) else {}


def _is_fixed(trial: TrialResult) -> bool:
    methods = [builtin_method(stage.prune.method) for stage in trial.plan.stages if stage.prune]
    drawn = any(method is None or method.draws for method in methods)
    drawn |= any(stage.prune.repair is not None for stage in trial.plan.stages if stage.prune)
    return not drawn and all(stage.kind in _UNCHANGING for stage in trial.plan.stages)


def compare_measured(first: Measured, second: Measured) -> PairedComparison:
    """The paired test of two rows.

    Raises:
        ReportError: they were not measured alike, or windows were not kept.
    """
    if first.key != second.key:
        raise ReportError(
            f"perplexities can be compared where they were measured alike; {first.key.differs(second.key)}. Evaluate "
            "both in one way."
        )
    if not first.windows or not second.windows:
        raise ReportError("a difference cannot be tested without the losses of each window. Evaluate again.")
    return compare_seeds(first.windows, second.windows, fixed=(first.fixed, second.fixed))


def told_apart(keys: Iterable[ComparisonKey]) -> dict[ComparisonKey, dict[str, str]]:
    """The fields in which the keys of one table differ, by name; empty if they are equal."""
    distinct = list(dict.fromkeys(keys))
    by_text = len({(key.protocol, key.split) for key in distinct}) < len(distinct)
    differing = [name for name in ("protocol", "split") if len({getattr(key, name) for key in distinct}) > 1]
    return {
        key: {
            **{name: getattr(key, name) for name in differing},
            **({"text": key.text[:_TEXT_SHOWN]} if by_text else {}),
        }
        for key in distinct
    }


def _alike(rows: Sequence[Measured | None]) -> list[dict[int, Measured]]:
    """Rows that may be compared with one another, by their index."""
    groups: dict[ComparisonKey, dict[int, Measured]] = {}
    for index, row in enumerate(rows):
        if row is not None:
            groups.setdefault(row.key, {})[index] = row
    return list(groups.values())


def standings(rows: Sequence[Measured | None]) -> list[Standing | None]:
    """For each row its standing among those measured alike; None where it has no number or nothing beside it."""
    found: list[Standing | None] = [None] * len(rows)
    for group in _alike(rows):
        if len(group) > 1:
            for index, standing in _against_best(group).items():
                found[index] = standing
    return found


def _against_best(rows: Mapping[int, Measured]) -> dict[int, Standing]:
    best = min(rows, key=lambda index: rows[index].perplexity)
    comparisons: dict[int, PairedComparison] = {}
    found = {best: Standing(best=True, difference=0.0)}
    for index, row in rows.items():
        if index == best:
            continue
        difference = row.perplexity - rows[best].perplexity
        found[index] = Standing(best=False, difference=difference, tied=difference == 0)
        try:
            comparisons[index] = compare_measured(row, rows[best])
        except ReportError as error:
            found[index] = Standing(best=False, difference=difference, note=f"not tested against the best: {error}")
    adjusted = holm([comparison.p_value for comparison in comparisons.values()])
    for (index, comparison), p_value in zip(comparisons.items(), adjusted, strict=True):
        found[index] = Standing(
            best=False,
            tied=p_value >= ALPHA,
            comparison=comparison,
            p_value=p_value,
            difference=comparison.difference.value,
        )
    return found


def beside_median(rows: Sequence[Measured | None], pruned: Sequence[bool]) -> list[Typical | None]:
    """For each row its place beside the median; None where it is not pruned, has several seeds or kept no windows.

    The median and not the mean: one layer that a model cannot do without makes a mean that no layer is near. Of an even
    number of rows the lower of the two in the middle is taken. Fewer than three rows have no median.
    """
    found: list[Typical | None] = [None] * len(rows)
    single = [
        row if row and counted and len(row.windows) == 1 else None for row, counted in zip(rows, pruned, strict=True)
    ]
    for group in _alike(single):
        if len(group) < 3:
            continue
        ranked = sorted(group, key=lambda index: group[index].perplexity)
        middle = ranked[(len(ranked) - 1) // 2]
        (median,) = group[middle].windows.values()
        others = {
            index: compare_windows(next(iter(measured.windows.values())), median)
            for index, measured in group.items()
            if index != middle
        }
        found[middle] = Typical(Interval(1.0, 1.0, 1.0), 1.0, is_median=True)
        adjusted = holm([comparison.p_value for comparison in others.values()])
        for (index, comparison), p_value in zip(others.items(), adjusted, strict=True):
            found[index] = Typical(comparison.ratio, p_value)
    return found
