"""A table spec and the stored trials become a table: every number from a record, with how sure it is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prunegpt.errors import ReportError, listed
from prunegpt.records import ComparisonKey, TrialResult
from prunegpt.report.cells import (
    OFF_TARGET,
    TIED,
    UNTYPICAL,
    Cell,
    Detail,
    Footnotes,
    Heading,
    Mark,
    Table,
    TableRow,
    in_one_notation,
    slug,
)
from prunegpt.report.columns import (
    COLUMNS,
    TOLERATED,
    Column,
    asked_sparsity,
    column,
    off_target,
    partly_covered,
    planned_sparsity,
)
from prunegpt.report.config import MISSING, value_at
from prunegpt.report.format import EMPTY, Value, plain, printed, text_of, together
from prunegpt.report.measure import Measured, WindowsOf, beside_median, measure, standings, told_apart
from prunegpt.report.provenance import gather
from prunegpt.report.rows import Row, select_rows
from prunegpt.report.scores import DocumentsOf, ScoreStanding, no_documents, score_notes, standings_of
from prunegpt.report.speeds import speed_cell, speed_notes
from prunegpt.report.statistics import LEVEL, RESAMPLES, Interval, spread
from prunegpt.spec.columns import CONFIG, EVALUATED, REPORTED, column_parts
from prunegpt.spec.metrics import MEAN, SPEEDS, is_task, speed_metric
from prunegpt.spec.naming import MAX_NAME
from prunegpt.spec.schema import ColumnSpec, Reported, RowSpec, TableSpec

TIED_WITH_BEST = (
    f"not significantly different from the best of its protocol (two-sided, level {1 - LEVEL:.2g}, adjusted for the "
    f"number of rows by Holm's method)"
)
_UNTYPICAL = (
    f"significantly different from the pruned row of median perplexity (two-sided, level {1 - LEVEL:.2g}, adjusted "
    f"for the number of rows by Holm's method)"
)
_OFF = f"more than {TOLERATED:g} point from the sparsity that was asked for"
_COMPARED = ("perplexity", "difference", "beside_median", "word_perplexity", "bits_per_byte", *SPEEDS)
# ^ depend on what is read, and where

_BEFORE = ("trial", "state", "stages")  # columns of a table that no spec declares
_AFTER = ("sparsity", "sparsity_all", "perplexity", "tokens", "seconds")
USUAL = "trials"  # name of that table
_PLAIN = (bool, int, float, str, type(None))
_MOST_SWEPT = 6
_MANY = 200  # trials above which nobody reads all
_BEST = 50


def build_table(
    spec: TableSpec,
    results: Sequence[TrialResult],
    windows: WindowsOf,
    *,
    documents: DocumentsOf = no_documents,
    sweep: str | None = None,
    commit: str | None = None,
) -> Table:
    """Builds a table from what was stored.

    Args:
        results: the trials that rows may match, in any order.
        windows: gives the per-window losses of a trial's last evaluation, or None; see `stored_windows`.
        documents: gives what each document counts in a trial's scores of tasks; see `stored_documents`.
        sweep: rows without a sweep mean trials of this one; default all.
        commit: of the spec, for the provenance line; see `spec_commit`.

    Raises:
        UnknownPartError: a column that does not exist, with the nearest names.
        ReportError: two columns with one heading, or one row whose seeds were not measured alike.
    """
    rows, unplaced = select_rows(spec, results, sweep)
    trials = [trial for row in rows for trial in row.trials]
    columns = [(wanted, column(wanted.value, trials)) for wanted in _with_reported(spec)]
    places = {wanted.value: place for place, (wanted, _) in enumerate(columns)}
    headings = tuple(
        Heading(
            wanted.header or shown.header,
            shown.kind,
            places.get(published_of(wanted.value)),
            *("", "") if wanted.header else _family(wanted.value, shown, trials),
            name=wanted.value,
        )
        for wanted, shown in columns
    )
    _check_headings(headings)
    parts = [column_parts(wanted.value) for wanted, _ in columns]
    seen = {
        evaluation: _measured(
            [row.under(evaluation) for row in rows], windows, median=("beside_median", evaluation) in parts
        )
        for evaluation in dict.fromkeys(["", *(evaluation for _, evaluation in parts)])
    }
    apart = {name: told_apart(key for row in found if (key := row.key)) for name, found in seen.items()}
    notes = Footnotes()
    ranked = {name: standings_of(name, rows, documents) for name, _ in parts if is_task(name)}
    made = [
        TableRow(
            trial=row.name,
            state=row.state,
            cells=tuple(
                _scored(shown, row, ranked[name][place], notes, spec.decimals)
                if name in ranked
                else _cell(name, shown, seen[evaluation][place], notes, apart[evaluation], spec)
                for (name, evaluation), (_, shown) in zip(parts, columns, strict=True)
            ),
            trials=tuple(trial.name for trial in row.trials),
        )
        for place, row in enumerate(rows)
    ]
    measured = [row.measured for name in seen for row in seen[name] if ("perplexity", name) in parts and row.measured]
    _whole_table(notes, measured, unplaced)
    for text in speed_notes(seen, [name for name, _ in parts]):
        notes.legend("", text)
    if spec.reported and spec.source:
        notes.legend("", f"Reported: {spec.source}")
    for text in score_notes(trials, [name for name, _ in parts]):
        notes.legend("", text)
    return Table(
        title=spec.title,
        name=table_name(spec),
        columns=headings,
        rows=in_one_notation(headings, made),
        footnotes=notes.all(),
        provenance=gather(trials, commit=commit).line if spec.provenance else "",
        caption=spec.caption or "",
    )


def _measured(rows: Sequence[Row], windows: WindowsOf, *, median: bool) -> list[Row]:
    """The rows with what they came to, and their standing beside one another."""
    found = [measure(row.trials, windows) for row in rows]
    compared = [None if row.broken else measured for row, measured in zip(rows, found, strict=True)]
    made = [
        replace(row, measured=measured, standing=standing)
        for row, measured, standing in zip(rows, found, standings(compared), strict=True)
    ]
    if not median:  # a bootstrap for each row
        return made
    placed = beside_median(found, [row.is_pruned for row in rows])
    return [replace(row, typical=typical) for row, typical in zip(made, placed, strict=True)]


def table_name(spec: TableSpec) -> str:
    """What a table is called in file names, markers and `prunegpt table --table`."""
    return spec.name or slug(spec.title)[:MAX_NAME]


def _with_reported(spec: TableSpec) -> list[ColumnSpec]:
    """The columns asked for; where there are published figures, they are next to the measured ones."""
    columns = list(spec.columns)
    given = {column for figures in spec.reported.values() for column in figures}
    for name in sorted(given - {published_of(wanted.value) for wanted in columns}):
        names = [wanted.value for wanted in columns]
        after = names.index(name) + 1 if name in names else len(columns)
        columns.insert(after, ColumnSpec(value=REPORTED if name == "perplexity" else f"{REPORTED}:{name}"))
    return columns


def _family(name: str, shown: Column, trials: Sequence[TrialResult]) -> tuple[str, str]:
    """What columns of evaluations share in a head of two rows, and the name of each; empty of other columns."""
    if is_task(name):
        return "Tasks", shown.header
    base, evaluation = column_parts(name)
    if base not in EVALUATED:
        return "", ""
    first = next((trial.plan.evaluate for trial in trials), None)
    return COLUMNS[base].header, evaluation or (first.name or first.split if first else "")


def published_of(name: str) -> str:
    """The column that a column of published figures is of; empty of any other."""
    kind, _, column = name.partition(":")
    return "" if kind != REPORTED else column or "perplexity"


def _check_headings(headings: Sequence[Heading]) -> None:
    keys = [heading.key for heading in headings]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ReportError(
            f"the columns of a table must have different headings; {listed(twice)} is used more than once. Give one "
            "of them a `header`."
        )


def _cell(
    name: str,
    shown: Column,
    row: Row,
    notes: Footnotes,
    apart: Mapping[ComparisonKey, Mapping[str, str]],
    spec: TableSpec,
) -> Cell:
    if of := published_of(name):
        return _reported(row.reported.get(of), notes, spec)
    decimals = spec.decimals
    values = [value for value in shown.extract(row) if value is not None]
    details: dict[str, Detail] = {}
    if shown.measured and not row.finished:
        remarks = tuple(notes.number(remark) for remark in row.remarks) if name == "perplexity" else ()
        return Cell(None, _without_number(name, row), footnotes=remarks)
    if not values:
        return Cell(None, EMPTY)
    value, text = _folded(values, shown, details, decimals)
    cell = Cell(value, text, details=details)
    if name == "perplexity":
        cell = _perplexity(cell, row, notes, decimals)
    if name == "difference":
        cell = _difference(cell, row, notes, decimals)
    if name == "beside_median":
        cell = _beside_median(cell, row, notes)
    if name == "sparsity":
        cell = _sparsity(cell, row, notes)
    if name in SPEEDS:
        cell = speed_cell(name, cell, row, notes, decimals)
    if name in _COMPARED and (key := row.key) and (told := apart[key]):
        noted = notes.number(", ".join(f"{part} {value}" for part, value in told.items()))
        cell = replace(cell, footnotes=(*cell.footnotes, noted), details={**cell.details, **told})
    return cell


def _without_number(name: str, row: Row) -> str:
    """The cell where there is no measured value; of a sparsity, what the plan asks for."""
    if name in _COMPARED:
        return row.state_text
    asked = {share for trial in row.trials if (share := planned_sparsity(trial)) is not None}
    if name != "sparsity" or len(asked) != 1:
        return EMPTY
    return f"{EMPTY} (asked {text_of(round(100 * asked.pop(), 10), 'percent')})"


def _folded(
    values: Sequence[Value], shown: Column, details: dict[str, Detail], decimals: int | None
) -> tuple[Value, str]:
    """One value from those of several seeds: the mean of numbers, distinct strings joined."""
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(values) or not shown.measured:
        distinct = list(dict.fromkeys(values))
        if len(distinct) == 1:
            return distinct[0], text_of(distinct[0], shown.kind, decimals)
        text = ", ".join(text_of(value, shown.kind) for value in distinct)
        return text, text
    if len(numbers) == 1:
        return numbers[0], text_of(numbers[0], shown.kind, decimals)
    mean, deviation = spread([float(number) for number in numbers])
    details |= {"sd": deviation, "n": len(numbers)}
    text, after = together(shown.kind, mean, deviation or 0.0, decimals=decimals)
    return mean, f"{text} ± {after} ({len(numbers)})" if shown.kind in ("loss", "bits") else text


def _perplexity(cell: Cell, row: Row, notes: Footnotes, decimals: int | None) -> Cell:
    measured, standing = row.measured, row.standing
    if measured is None:
        return cell
    text, details = cell.text, dict(cell.details)
    if measured.interval:
        details["interval"] = (measured.interval.low, measured.interval.high)
        if measured.count == 1:
            text = _with_ends(measured.interval, decimals)
    footnotes = [notes.number(note) for note in (*row.remarks, *measured.notes)]
    marks: tuple[Mark, ...] = ()
    if standing and standing.best:
        marks = ("best",)
    elif standing and standing.tied:
        marks = ("tied",)
        footnotes.insert(0, notes.legend(TIED, TIED_WITH_BEST))
    if standing and standing.note:
        footnotes.append(notes.number(standing.note.removesuffix(".")))
    return replace(cell, text=text, marks=marks, footnotes=tuple(footnotes), details=details)


def _with_ends(found: Interval, decimals: int | None) -> str:
    return "{} [{}, {}]".format(*together("loss", found.value, found.low, found.high, decimals=decimals))


def _difference(cell: Cell, row: Row, notes: Footnotes, decimals: int | None) -> Cell:
    standing = row.standing
    if standing is None or standing.best:
        return replace(cell, text="best" if standing else EMPTY)
    sign = "+" if isinstance(cell.value, float) and cell.value >= 0 else ""
    found = standing.comparison
    if found is None:
        return replace(cell, text=f"{sign}{cell.text}")
    text = _with_ends(found.difference, decimals)
    footnotes = (notes.number(f"over the {found.count} seeds that both have"),) if found.partial else ()
    details: dict[str, Detail] = {"interval": (found.difference.low, found.difference.high), "p": standing.p_value}
    return replace(cell, text=f"{sign}{text}", footnotes=footnotes, details=details)


def _beside_median(cell: Cell, row: Row, notes: Footnotes) -> Cell:
    typical = row.typical
    if typical is None:
        return cell
    ratio = typical.ratio
    details: dict[str, Detail] = {"interval": (ratio.low, ratio.high), "p": typical.p_value}
    if typical.is_median:
        return replace(cell, text="median", details=details)
    text = f"× {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    footnotes = (notes.legend(UNTYPICAL, _UNTYPICAL),) if typical.differs else ()
    return replace(cell, text=text, footnotes=footnotes, details=details)


def _sparsity(cell: Cell, row: Row, notes: Footnotes) -> Cell:
    asked = [target for trial in row.finished if (target := asked_sparsity(trial)) is not None]
    details: dict[str, Detail] = dict(cell.details)
    if asked:
        details["asked"] = round(100 * asked[0], 10)
    covered = [(share, trial.sparsity) for trial in row.finished if (share := partly_covered(trial)) is not None]
    if covered:
        share, found = covered[0]
        overall = text_of(round(100 * found.overall, 10), "percent") if found else EMPTY
        text = f"of the pruned tensors, {share:.1%} of the weights outside the embeddings; of all weights {overall}"
        cell = replace(cell, footnotes=(*cell.footnotes, notes.number(text)))
    if not any(off_target(trial) for trial in row.finished):
        return replace(cell, details=details)
    text = f"{cell.text} (asked {text_of(details['asked'], 'percent')})"  # type: ignore[arg-type]
    footnotes = (*cell.footnotes, notes.legend(OFF_TARGET, _OFF))
    return replace(cell, text=text, marks=("off-target",), footnotes=footnotes, details=details)


def _scored(shown: Column, row: Row, standing: ScoreStanding | None, notes: Footnotes, decimals: int | None) -> Cell:
    """A score of tasks: the best in bold, and what is not significantly different from it marked."""
    values = [value for value in shown.extract(row) if value is not None]
    if not values:
        return Cell(None, EMPTY if row.finished else row.state_text)
    details: dict[str, Detail] = {}
    value, text = _folded(values, shown, details, decimals)
    if standing is None:
        return Cell(value, text, details=details)
    if standing.stderr is not None:
        details["stderr"] = round(100 * standing.stderr, 10)
    if standing.p_value is not None:
        details["p"] = standing.p_value
    footnotes = (notes.legend(TIED, TIED_WITH_BEST),) if standing.tied else ()
    marks: tuple[Mark, ...] = ("best",) if standing.best else ("tied",) if standing.tied else ()
    return Cell(value, text, marks=marks, footnotes=footnotes, details=details)


def _reported(figure: Reported | None, notes: Footnotes, spec: TableSpec) -> Cell:
    """The published figure as it was printed; empty where it was left empty."""
    if figure is None:
        return Cell(None, EMPTY)
    remarks = [figure.note, figure.source and f"from {figure.source}"]
    footnotes = tuple(notes.number(remark) for remark in remarks if remark)
    if figure.value is None and figure.text is None:
        return Cell(None, "", footnotes=footnotes)
    value: Value = plain(figure.value) if figure.value is not None else figure.text
    text = figure.text if figure.text is not None else value if isinstance(value, str) else printed(float(value or 0))
    tolerance = spec.tolerance if figure.tolerance is None else figure.tolerance
    said = {"note": figure.note, "source": figure.source or spec.source, "tolerance": tolerance}
    return Cell(value, text, footnotes=footnotes, details={name: one for name, one in said.items() if one is not None})


def _whole_table(notes: Footnotes, measured: Sequence[Measured], unplaced: Sequence[str]) -> None:
    if any(row.interval and row.count == 1 for row in measured):
        notes.legend("", f"In brackets: {LEVEL:.0%} interval, block bootstrap over windows, {RESAMPLES:,} resamples")
    if any(row.count > 1 for row in measured):
        notes.legend("", "After ±: sample standard deviation over seeds, and in parentheses their number")
    if unplaced:
        notes.legend("", f"Published figures that no row shows: {', '.join(unplaced)}")


def usual_table(sweep: str, trials: Sequence[TrialResult]) -> TableSpec:
    """What `tables` could have said of these trials.

    Only swept paths with plain values get a column, the first six; a chain of stages has one anyway. Of more than
    200 trials the best 50 are shown. The sparsity of all weights is a column where much of a model is
    not pruned.
    """
    swept: list[str] = []
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for path, value in trial.swept.items():
            if path not in (*values, *_BEFORE) and value_at(trial, path) is not MISSING:
                swept.append(path)
            values.setdefault(path, []).append(value)
    swept = [path for path in swept if all(isinstance(value, _PLAIN) for value in values[path])][:_MOST_SWEPT]
    many = len(trials) > _MANY
    partly = any(partly_covered(trial) is not None for trial in trials)
    after = [name for name in _AFTER if name != "sparsity_all" or partly]
    beside = after.index("perplexity") + 1
    after[beside:beside] = _further(trials)
    return TableSpec(
        title=f"The best {_BEST} of {len(trials):,} trials of {sweep}" if many else f"All trials of {sweep}",
        name=USUAL,
        rows=(RowSpec(trial="*", best=_BEST if many else None),),
        columns=(
            *(ColumnSpec(value=name) for name in _BEFORE),
            *(ColumnSpec(value=f"{CONFIG}{path}", header=_header(path, swept)) for path in swept),
            *(ColumnSpec(value=name) for name in after),
        ),
    )


def _further(trials: Sequence[TrialResult]) -> list[str]:
    """Columns of what is measured beside the first perplexity."""
    also = dict.fromkeys(one.name for trial in trials for one in trial.plan.also if one.evaluate.kind == "text")
    timed = dict.fromkeys(one.name for trial in trials for one in trial.plan.also if one.evaluate.speed)
    speeds = [speed_metric(metric, name) for name in timed for metric in ("speedup", "decode")]
    tasks = dict.fromkeys(task for trial in trials for one in trial.plan.also for task in one.evaluate.tasks or ())
    mean = [MEAN] if len(tasks) > 1 else []
    return [*(f"perplexity:{name}" for name in also), *(f"task:{task}" for task in tasks), *mean, *speeds]


def _header(path: str, others: Sequence[str]) -> str:
    """The last part of a path, where nothing else is called that."""
    last = path.rpartition(".")[2]
    alike = [other for other in others if other.rpartition(".")[2] == last]
    return last.replace("_", " ") if len(alike) == 1 and last not in (*_BEFORE, *_AFTER) else path
