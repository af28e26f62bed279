"""The perplexity of one row, over its seeds, with its interval; and which rows are best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunegpt.records import TrialResult
from prunegpt.report.errors import ReportError
from prunegpt.report.seeds import compare_seeds, spread, spread_interval
from prunegpt.report.statistics import (
    FEW,
    LEVEL,
    Comparison,
    Interval,
    Windows,
    check_windows,
    holm,
    perplexity_interval,
)
from prunegpt.report.windows import WindowsOf, check_belongs

_UNCHANGING = ("load", "pretrain", "prune")  # stages whose result does not depend on the seed, but for method random
ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Measured:
    """What the finished runs of a row came to."""

    perplexity: float  # mean over seeds
    deviation: float | None  # sample standard deviation over seeds
    count: int  # runs
    interval: Interval | None
    protocol: str
    evaluation_key: str
    windows: Mapping[int, Windows]  # by seed; empty where they are not kept
    fixed: bool  # the same for every seed
    notes: tuple[str, ...] = ()  # what readers must know, a footnote each


@dataclass(frozen=True)
class Standing:
    """A row beside the best one of its protocol."""

    best: bool
    tied: bool = False  # not significantly different from the best
    comparison: Comparison | None = None  # against the best; None for the best itself, or where it could not be tested
    p_value: float | None = None  # adjusted for the number of rows (Holm)
    difference: float | None = None  # perplexity less that of the best
    note: str = ""


def is_measured(trial: TrialResult) -> bool:
    """Whether a trial has finished with a perplexity that is a number."""
    evaluation = trial.evaluation
    return (
        trial.state == "finished"
        and evaluation is not None
        and evaluation.finite
        and evaluation.perplexity is not None
        and math.isfinite(evaluation.perplexity)
    )


def measure(trials: Sequence[TrialResult], windows: WindowsOf) -> Measured | None:
    """The perplexity of the runs that have one; None where none has.

    Raises:
        ReportError: the runs of one row were measured with different protocols.
    """
    done = [trial for trial in trials if is_measured(trial)]
    evaluations = [trial.evaluation for trial in done if trial.evaluation]
    if not evaluations:
        return None
    protocols = sorted({evaluation.protocol for evaluation in evaluations})
    if len(protocols) > 1:
        raise ReportError(
            f"seeds of one row must be measured with one protocol, but have {', '.join(protocols)}. "
            f"Evaluate them again with the same one."
        )
    values = [evaluation.perplexity for evaluation in evaluations if evaluation.perplexity is not None]
    notes: list[str] = []
    kept = _windows(done, windows, notes)
    found = spread(values)
    interval = None
    if found.count > 1:
        interval = spread_interval(values)
    elif kept:
        only = next(iter(kept.values()))
        interval = perplexity_interval(only)
        if len(only) < FEW:
            notes.append(f"{len(only)} windows are too few to trust the interval and the tests")
    return Measured(
        perplexity=found.mean,
        deviation=found.deviation,
        count=found.count,
        interval=interval,
        protocol=protocols[0],
        evaluation_key=evaluations[0].key,
        windows=kept,
        fixed=all(_is_fixed(trial) for trial in done),
        notes=tuple(notes),
    )


def _windows(done: Sequence[TrialResult], windows: WindowsOf, notes: list[str]) -> dict[int, Windows]:
    kept: dict[int, Windows] = {}
    for trial in done:
        found = windows(trial)
        if found is None or trial.evaluation is None:
            continue
        try:
            check_belongs(check_windows(found), trial.evaluation)
        except ReportError as error:
            notes.append(f"{trial.name}: {error}".removesuffix("."))
        else:
            kept[trial.seed] = found
    return kept if len(kept) == len(done) else {}


def _is_fixed(trial: TrialResult) -> bool:
    stages = trial.plan.get("stages") or [{"kind": stage.kind} for stage in trial.stages]
    return all(
        stage.get("kind") in _UNCHANGING and (stage.get("prune") or {}).get("method") != "random" for stage in stages
    )


def compare_measured(first: Measured, second: Measured) -> Comparison:
    """The paired test of two rows.

    Raises:
        ReportError: other protocols or windows, or windows that were not kept.
    """
    if first.protocol != second.protocol:
        raise ReportError(
            f"perplexities of different protocols cannot be compared, but one is {first.protocol} and the other "
            f"{second.protocol}. Evaluate both with one protocol."
        )
    if not first.windows or not second.windows:
        raise ReportError("a difference cannot be tested without the losses of each window. Evaluate again.")
    return compare_seeds(first.windows, second.windows, fixed=(first.fixed, second.fixed))


def standings(rows: Sequence[Measured | None]) -> list[Standing | None]:
    """For each row its standing among the rows of its protocol; None where it has no number or nothing beside it."""
    found: list[Standing | None] = [None] * len(rows)
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row is not None:
            groups.setdefault(row.protocol, []).append(index)
    for group in groups.values():
        if len(group) > 1:
            for index, standing in _against_best({index: row for index in group if (row := rows[index])}).items():
                found[index] = standing
    return found


def _against_best(rows: Mapping[int, Measured]) -> dict[int, Standing]:
    best = min(rows, key=lambda index: rows[index].perplexity)
    comparisons: dict[int, Comparison] = {}
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
            difference=found[index].difference,
        )
    return found
