"""Two trials side by side: configuration differences, results, and significance."""

from collections.abc import Mapping
from dataclasses import dataclass

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult
from prunegpt.report.cells import Cell, Detail, Footnote, Heading, Table, TableRow
from prunegpt.report.columns import COLUMNS
from prunegpt.report.config import differing, resolved
from prunegpt.report.format import EMPTY, Value, ValueKind, plain, probability, text_of, together
from prunegpt.report.measure import WindowsOf, compare_measured, measure
from prunegpt.report.provenance import gather
from prunegpt.report.rows import Row
from prunegpt.report.statistics import PairedComparison

_METRICS = ("perplexity", "word_perplexity", "bits_per_byte", "sparsity", "sparsity_all", "tokens", "seconds")
_EVALUATED = ("perplexity", "word_perplexity", "bits_per_byte")


@dataclass(frozen=True)
class Metric:
    """A measured value of both; None where a trial has none."""

    name: str  # of its column
    header: str
    kind: ValueKind
    first: float | None
    second: float | None
    difference: float | None  # first less second; None where it would mean nothing


@dataclass(frozen=True)
class TrialComparison:
    """All that sets two trials apart."""

    first: TrialResult
    second: TrialResult
    settings: Mapping[str, tuple[Value, Value]]  # path where they differ -> both values; None where one has none
    metrics: tuple[Metric, ...]
    test: PairedComparison | None
    reason: str = ""  # why there is no test

    @property
    def verdict(self) -> str:
        """The test in a sentence."""
        if self.test is None:
            return f"Not tested: {self.reason}"
        found, names = self.test, (self.first.address, self.second.address)
        differ = "differ" if found.p_value < 1 - found.ratio.level else "do not differ significantly"
        return (
            f"{names[0]} and {names[1]} {differ}: perplexity {found.difference.value:+.3f} "
            f"[{found.difference.low:+.3f}, {found.difference.high:+.3f}], ratio {found.ratio.value:.4f} "
            f"[{found.ratio.low:.4f}, {found.ratio.high:.4f}], {probability(found.p_value)} "
            f"({found.method}, n = {found.count})."
        )


def compare(first: TrialResult, second: TrialResult, windows: WindowsOf) -> TrialComparison:
    """Compares two trials. A missing test is no error: `reason` explains why there is none."""
    test, reason = None, ""
    one, two = measure([first], windows), measure([second], windows)
    try:
        if one is None or two is None:
            trial = first if one is None else second
            raise ReportError(
                f"a comparison needs two measured perplexities; {trial.address} has none: it is {trial.state}."
            )
        test = compare_measured(one, two)
    except ReportError as error:
        reason = str(error)
    alike = one is not None and two is not None and one.key == two.key
    metrics = []
    for name in _METRICS:
        column, a, b = COLUMNS[name], _value(name, first), _value(name, second)
        tested = test.difference.value if test and name == "perplexity" else None
        plainly = a - b if a is not None and b is not None and (alike or name not in _EVALUATED) else None
        if a is not None or b is not None:
            difference = plainly if tested is None else tested
            metrics.append(Metric(name, column.header, column.kind, a, b, difference))
    apart = differing(resolved(first), resolved(second))
    settings = {path: (plain(one), plain(two)) for path, (one, two) in apart.items()}
    return TrialComparison(first, second, settings, tuple(metrics), test, reason)


def _value(name: str, trial: TrialResult) -> float | None:
    if not trial.measured:
        return None
    value = next(iter(COLUMNS[name].extract(Row(name=trial.name, label=trial.label, trials=(trial,)))), None)
    return float(value) if isinstance(value, (int, float)) else None


def comparison_tables(found: TrialComparison) -> tuple[Table, Table]:
    """The comparison as two tables, for every format that tables have: measured values, then settings."""
    names = (found.first.address, found.second.address)
    if names[0] == names[1]:
        names = (f"{names[0]} (first)", f"{names[1]} (second)")
    measured = Table(
        title=f"{names[0]} against {names[1]}",
        name="metrics",
        columns=(Heading("Metric", "text"), *(Heading(name, "number") for name in (*names, "Difference"))),
        rows=tuple(_metric_row(metric, found) for metric in found.metrics),
        footnotes=(Footnote("", found.verdict.removesuffix(".")),),
        provenance=gather([found.first, found.second]).line,
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
        Cell(metric.first, text_of(metric.first, metric.kind)),
        Cell(metric.second, text_of(metric.second, metric.kind)),
        Cell(metric.difference, text, details=details),
    )
    return TableRow(metric.header, "finished", cells)
