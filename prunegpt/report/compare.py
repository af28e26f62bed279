"""Two trials, or two configurations over their seeds, side by side: settings that differ, results, significance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunegpt.errors import ReportError, counted
from prunegpt.records import TrialResult
from prunegpt.report.cells import Cell, Detail, Footnote, Heading, Table, TableRow
from prunegpt.report.columns import Column, column
from prunegpt.report.config import differing, flatten, resolved
from prunegpt.report.format import EMPTY, Value, ValueKind, plain, probability, text_of, together
from prunegpt.report.measure import WindowsOf, compare_measured, measure
from prunegpt.report.provenance import gather
from prunegpt.report.rows import Row
from prunegpt.report.statistics import PairedComparison, spread
from prunegpt.spec.metrics import SPEEDS, evaluation_of, speed_metric

_EVALUATED = ("perplexity", "word_perplexity", "bits_per_byte")
_METRICS = (*_EVALUATED, "sparsity", "sparsity_all", "nonzero", "bytes", "tokens", "seconds")


@dataclass(frozen=True)
class Metric:
    """A measured value of both, of several seeds their mean; None where a trial has none."""

    name: str  # of its column
    header: str
    kind: ValueKind
    first: float | None
    second: float | None
    difference: float | None  # first less second; None where it would mean nothing
    spreads: tuple[float | None, float | None] = (None, None)  # sample standard deviations over seeds


@dataclass(frozen=True)
class TrialComparison:
    """All that sets two configurations apart."""

    first: Row
    second: Row
    settings: Mapping[str, tuple[Value, Value]]  # path where they differ -> both values; None where one has none
    metrics: tuple[Metric, ...]
    test: PairedComparison | None
    reason: str = ""  # why there is no test

    @property
    def verdict(self) -> str:
        """The test in a sentence."""
        if self.test is None:
            return f"Not tested: {self.reason}"
        found, names = self.test, (self.first.name, self.second.name)
        differ = "differ" if found.p_value < 1 - found.ratio.level else "do not differ significantly"
        return (
            f"{names[0]} and {names[1]} {differ}: perplexity {found.difference.value:+.3f} "
            f"[{found.difference.low:+.3f}, {found.difference.high:+.3f}], ratio {found.ratio.value:.4f} "
            f"[{found.ratio.low:.4f}, {found.ratio.high:.4f}], {probability(found.p_value)} "
            f"({found.method}, n = {found.count})."
        )


def compare(
    first: TrialResult | Sequence[TrialResult], second: TrialResult | Sequence[TrialResult], windows: WindowsOf
) -> TrialComparison:
    """Compares two trials, or the seeds of two configurations: means, and the paired test over seeds and windows.

    A missing test is no error: `reason` explains why there is none.

    Raises:
        ReportError: the seeds of one side were not measured alike.
    """
    sides = left, right = _side(first), _side(second)
    one, two = (measure(side.trials, windows) for side in sides)
    test, reason = None, ""
    try:
        if one is None or two is None:
            side = left if one is None else right
            raise ReportError(
                f"a comparison needs two measured perplexities; {side.name} has none: it is {side.trials[0].state}."
            )
        test = compare_measured(one, two)
    except ReportError as error:
        reason = str(error)
    alike = one is not None and two is not None and one.key == two.key
    metrics = []
    timed = dict.fromkeys(
        one.name for side in sides for trial in side.trials for one in trial.plan.also if one.reference
    )
    speeds = [speed_metric(metric, name) for name in timed for metric in SPEEDS]
    for name in (*_METRICS, *speeds):
        shown = column(name, [*left.trials, *right.trials])
        (a, of_a), (b, of_b) = (_value(shown, side) for side in sides)
        tested = test.difference.value if test and name == "perplexity" else None
        if name in speeds:
            alike = left.under(evaluation_of(name)).key == right.under(evaluation_of(name)).key
        plainly = a - b if a is not None and b is not None and (alike or name not in (*_EVALUATED, *speeds)) else None
        if a is not None or b is not None:
            difference = plainly if tested is None else tested
            metrics.append(Metric(name, shown.header, shown.kind, a, b, difference, (of_a, of_b)))
    apart = differing(*(_settings(side.trials) for side in sides))
    settings = {path: (plain(one), plain(two)) for path, (one, two) in apart.items()}
    return TrialComparison(left, right, settings, tuple(metrics), test, reason)


def _side(given: TrialResult | Sequence[TrialResult]) -> Row:
    trials = (given,) if isinstance(given, TrialResult) else tuple(given)
    one = trials[0]
    name = one.address if len(trials) == 1 else f"{one.sweep}/{one.group} ({counted(len(trials), 'seed')})"
    return Row(name=name, label=one.label, trials=trials)


def _settings(trials: Sequence[TrialResult]) -> Mapping[str, Any]:
    """What a configuration says, by path; where its seeds differ, all they say."""
    apart = differing(*(resolved(trial) for trial in trials))
    shared = dict(flatten(resolved(trials[0])))
    return shared | {path: ", ".join(map(str, values)) for path, values in apart.items()}


def _value(shown: Column, side: Row) -> tuple[float | None, float | None]:
    """Mean over the seeds that were measured, and their standard deviation."""
    found = shown.extract(side) if side.finished else ()
    numbers = [float(value) for value in found if isinstance(value, (int, float))]
    return spread(numbers) if numbers else (None, None)


def comparison_tables(found: TrialComparison) -> tuple[Table, Table]:
    """The comparison as two tables, for every format that tables have: measured values, then settings."""
    names = (found.first.name, found.second.name)
    if names[0] == names[1]:
        names = (f"{names[0]} (first)", f"{names[1]} (second)")
    measured = Table(
        title=f"{names[0]} against {names[1]}",
        name="metrics",
        columns=(Heading("Metric", "text"), *(Heading(name, "number") for name in (*names, "Difference"))),
        rows=tuple(_metric_row(metric, found) for metric in found.metrics),
        footnotes=(Footnote("", found.verdict.removesuffix(".")),),
        provenance=gather([*found.first.trials, *found.second.trials]).line,
    )
    settings = Table(
        title="Settings that differ",
        name="settings",
        columns=tuple(Heading(name, "text") for name in ("Setting", *names)),
        rows=tuple(
            TableRow(path, "finished", tuple(Cell(value, text_of(value)) for value in (path, *both)))
            for path, both in found.settings.items()
        ),
    )
    return measured, settings


def _metric_row(metric: Metric, found: TrialComparison) -> TableRow:
    details: dict[str, Detail] = {}
    text = EMPTY
    if metric.difference is not None:
        text = text_of(metric.difference, metric.kind)
        if metric.name == "perplexity" and found.test:
            ends = (found.test.difference.low, found.test.difference.high)
            details = {"interval": ends, "p": found.test.p_value}
            text = "{} [{}, {}]".format(*together("loss", metric.difference, *ends))
        text = ("+" if metric.difference > 0 else "") + text
    cells = (
        Cell(metric.header, metric.header),
        _over_seeds(metric.first, metric.spreads[0], metric.kind),
        _over_seeds(metric.second, metric.spreads[1], metric.kind),
        Cell(metric.difference, text, details=details),
    )
    return TableRow(metric.header, "finished", cells)


def _over_seeds(mean: float | None, deviation: float | None, kind: ValueKind) -> Cell:
    if mean is None or deviation is None:
        return Cell(mean, text_of(mean, kind))
    text, after = together(kind, mean, deviation)
    return Cell(mean, f"{text} ± {after}", details={"sd": deviation})
