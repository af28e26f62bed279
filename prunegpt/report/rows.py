"""Which trials a table's rows are."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from prunegpt.errors import ReportError
from prunegpt.records import ComparisonKey, TrialResult, comparable
from prunegpt.report.cells import RowState
from prunegpt.report.measure import Measured, Standing, Typical, not_alike
from prunegpt.spec.plan import SweepPlan
from prunegpt.spec.schema import Reported, TableSpec
from prunegpt.spec.search import broken

_STATE_TEXT = {"waiting": "not run", "stopped": "stopped early"}
_MOST_TELLING: tuple[RowState, ...] = (
    "running",
    "diverged",
    "not finite",
    "failed",
    "stopped",
    "waiting",
    "not measured",
)


@dataclass(frozen=True)
class Row:
    """One configuration: a trial, or those that differ from it in the seed alone."""

    name: str
    label: str
    trials: tuple[TrialResult, ...]
    reported: Mapping[str, Reported] = field(default_factory=dict)  # by column
    measured: Measured | None = None
    standing: Standing | None = None
    typical: Typical | None = None
    kept_broken: tuple[str, ...] | None = None  # of the row that this is a view of: constraints are of its own figures

    @property
    def is_pruned(self) -> bool:
        """Whether all its finished runs were pruned; a dense model may have zeros too."""
        return all(trial.sparsity is not None and trial.sparsity.target for trial in self.finished)

    @property
    def finished(self) -> tuple[TrialResult, ...]:
        """The runs whose perplexity is a number, or that have scores alone; a measured column uses these only."""
        return tuple(trial for trial in self.trials if trial.is_evaluated)

    def under(self, evaluation: str) -> "Row":
        """The same row with another of the evaluations of its trials in the place of the first."""
        trials = tuple(trial.under(evaluation) for trial in self.trials)
        return replace(self, trials=trials, kept_broken=self.broken)

    @property
    def key(self) -> ComparisonKey | None:
        """What its figures were measured on and how; None where it has none yet.

        Raises:
            ReportError: its runs were not measured alike, so they have no mean.
        """
        found = [(trial, trial.measured.comparison_key) for trial in self.trials if trial.measured]
        for trial, key in found:
            if key != found[0][1]:
                raise ReportError(not_alike(found[0][0].name, trial.name, found[0][1].differs(key)))
        return found[0][1] if found else None

    @property
    def broken(self) -> tuple[str, ...]:
        """The constraints of its search that a finished run does not fulfil."""
        if self.kept_broken is not None:
            return self.kept_broken
        found = [broken(trial.plan.constraints, trial.metrics) for trial in self.finished]
        return tuple(dict.fromkeys(text for texts in found for text in texts))

    @property
    def state(self) -> RowState:
        if not self.trials:
            return "missing"
        if len(self.finished) == len(self.trials):
            return "finished"
        if self.finished:
            return "partial"
        found = {_state(trial) for trial in self.trials}
        return next(state for state in _MOST_TELLING if state in found)

    @property
    def state_text(self) -> str:
        """The state in words, for a cell that has no number."""
        return _STATE_TEXT.get(self.state, self.state)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the row leaves out, which constraints it breaks, or why it has no number."""
        found = (f"not fulfilled: {', '.join(self.broken)}; neither best nor compared",) if self.broken else ()
        if self.state == "partial":
            counts = Counter(_STATE_TEXT.get(state, state) for trial in self.trials if (state := _state(trial)))
            others = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()) if state != "finished")
            return (*found, f"{len(self.finished)} of {len(self.trials)} seeds; not in the mean: {others}")
        reasons = {trial.reason for trial in self.trials if trial.state == "failed" and trial.reason}
        return tuple(f"failed: {reason}" for reason in sorted(reasons)) if self.state == "failed" else found


def _state(trial: TrialResult) -> RowState:
    if trial.state != "finished":
        return trial.state
    if trial.evaluation is None and not trial.is_evaluated:
        return "not measured"
    return "finished" if trial.is_evaluated else "not finite"


def with_planned(results: Sequence[TrialResult], plan: SweepPlan) -> tuple[TrialResult, ...]:
    """The stored results of a sweep, and a waiting one for each trial of its plan that is not among them.

    The others keep their place; ids of added ones are negative, for they are in no store.
    """
    known = {(trial.sweep, trial.name) for trial in results}
    missing = [trial for trial in plan.trials if (trial.sweep, trial.name) not in known and not trial.implicit]
    waiting = (TrialResult(id=-n, shown=True, state="waiting", plan=trial) for n, trial in enumerate(missing, start=1))
    return (*results, *waiting)


def other_sweeps(tables: Sequence[TableSpec], sweep: str) -> set[str]:
    """The sweeps that rows of a sweep's tables name beside it."""
    return {row.trial.partition("/")[0] for table in tables for row in table.rows if "/" in row.trial} - {sweep}


def select_rows(
    spec: TableSpec, results: Sequence[TrialResult], sweep: str | None = None
) -> tuple[list[Row], list[str]]:
    """The rows of a table in the order of its patterns, each trial once, and the names of figures that fit no row.

    A pattern means a trial's name, the name its seeds share, or SWEEP/NAME. Teachers that the spec does not list and
    trials that it no longer lists are shown only where a row names them in full. Where a sweep is given, patterns
    without one mean its trials only.
    """
    ordered = sorted(results, key=lambda trial: (trial.sweep, trial.order, trial.seed, trial.name))
    rows: list[Row] = []
    taken: set[int] = set()
    for pattern in spec.rows:
        groups: dict[tuple[str, str], list[TrialResult]] = {}
        matched = [trial for trial in ordered if _matches(trial, pattern.trial, sweep)]
        for trial in matched:
            if trial.id not in taken:
                groups.setdefault((trial.sweep, trial.group), []).append(trial)
                taken.add(trial.id)
        found = [
            Row(one.name if len(trials) == 1 else one.group, pattern.label or one.label, tuple(trials))
            for trials in groups.values()
            for one in trials[:1]
        ]
        rows += _best(found, pattern.best)
        if not matched:  # a row for each published figure that the pattern means, else one for itself
            named = [name for name in spec.reported if fnmatchcase(name, pattern.trial)]
            rows += [Row(name, pattern.label or name, ()) for name in named or [pattern.trial]]
    return _with_reported(spec, rows)


def _best(rows: list[Row], count: int | None) -> list[Row]:
    """So many rows of the lowest perplexity, the mean of their seeds, best first; all where there is no count.

    Rows that break a constraint of their search are left out, where any other is there.
    Rows that were not measured as most are come after those that were.
    """
    if count is None:
        return rows
    if any(row.finished and not row.broken for row in rows):
        rows = [row for row in rows if not row.broken]
    ranked = {trial.id for trial in comparable([trial for row in rows for trial in row.finished])}

    def perplexity(row: Row) -> float:
        known = [found.perplexity or 0.0 for trial in row.finished if trial.id in ranked and (found := trial.measured)]
        return sum(known) / len(known) if known else math.inf

    return sorted(rows, key=perplexity)[:count]


def _matches(trial: TrialResult, pattern: str, sweep: str | None) -> bool:
    names = [trial.address, f"{trial.sweep}/{trial.group}"]
    if sweep is None or trial.sweep == sweep:
        names += [trial.name, trial.group]
    if trial.implicit or not trial.shown:
        return pattern in names
    return any(fnmatchcase(name, pattern) for name in names)


def _with_reported(spec: TableSpec, rows: list[Row]) -> tuple[list[Row], list[str]]:
    used: set[str] = set()
    found = []
    for row in rows:
        names = [row.name, *(name for trial in row.trials for name in (trial.group, trial.name))]
        exact = [name for name in names if name in spec.reported]
        globbed = [key for key in spec.reported if any(fnmatchcase(name, key) for name in names)]
        key = next(iter(exact or globbed), None)
        if key is not None:
            used.add(key)
            row = replace(row, reported=spec.reported[key])
        found.append(row)
    return found, [name for name in spec.reported if name not in used]
