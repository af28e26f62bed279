"""What the curves of trials come to: the last, the least and the greatest value of each, as fields and in columns."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prunegpt.records import TrialResult
from prunegpt.report.field import TrialField
from prunegpt.spec.columns import CURVE as COLUMN
from prunegpt.spec.columns import CurveValue, curve_value
from prunegpt.spec.figures import FigureSpec
from prunegpt.spec.schema import TableSpec

if TYPE_CHECKING:
    from prunegpt.store.curves import CurveName, Summaries

CURVE = "curve."  # what keys of these fields begin with
_ENDS = {"last": "last", "min": "low", "max": "high"}  # in paths, and of `CurveEnds`


def curve_fields(summaries: "Summaries", *, every: bool = True) -> Mapping[str, TrialField]:
    """The fields by path: last.NAME, min.NAME and max.NAME of the last stage that has such a curve.

    Args:
        every: those of single tensors too, and where several stages have a curve, stages.N.last.NAME and so on.
    """
    found: dict[str, TrialField] = {}
    for metric in summaries.metrics.values():
        if every or not metric.of_tensor:
            stages = metric.stages if every and len(metric.stages) > 1 else ()
            for value in (value for stage in (None, *stages) for value in _values(metric, stage)):
                found[value.path] = _field(value, _end(summaries, value))
    return found


def kept_fields(trials: Sequence[TrialResult]) -> Mapping[str, TrialField]:
    """The same of what trials carry with them."""
    values = {path: curve_value(path) for path in dict.fromkeys(path for trial in trials for path in trial.curves)}
    return {path: _field(value, _kept(path)) for path, value in values.items() if value}


def with_curves(
    results: Iterable[TrialResult],
    curves: Callable[[], "Summaries"],
    tables: Sequence[TableSpec] = (),
    figures: Sequence[FigureSpec] = (),
) -> list[TrialResult]:
    """The trials with what their curves came to, as far as columns and filters of tables and figures ask for it.

    Args:
        curves: gives what the curves of the trials come to.
    """
    trials = list(results)
    columns = [column.value for table in tables for column in table.columns]
    columns += [name for figure in figures for name in (figure.x, figure.y, figure.by) if name]
    paths = [name.removeprefix(COLUMN) for name in columns if name.startswith(COLUMN)]
    filters = " ".join(figure.where for figure in figures)
    if not trials or not (paths or filters):
        return trials
    summaries = curves()
    asked = {path: value for path in paths if (value := curve_value(path))}
    named = [metric for metric in summaries.metrics.values() if metric.name in filters]
    for value in (value for metric in named for stage in (None, *metric.stages) for value in _values(metric, stage)):
        asked[value.path] = value
    made = []
    for trial in trials:
        ends = {value: summaries.of(trial.plan, value.name, value.stage) for value in asked.values()}
        known = {value.path: getattr(found, _ENDS[value.end]) for value, found in ends.items() if found}
        made.append(trial.model_copy(update={"curves": known}))
    return made


def _values(metric: "CurveName", stage: int | None) -> Iterator[CurveValue]:
    """Those that differ: where a curve only falls, its last value is its least."""
    for end, shown in (("last", True), ("min", metric.rises), ("max", metric.falls)):
        if shown:
            yield CurveValue(metric.name, end, stage)


def _field(value: CurveValue, of: Callable[[TrialResult], float | None]) -> TrialField:
    return TrialField(f"{CURVE}{value.path}", value.label, "number", value.about, of, origin="curve")


def _end(summaries: "Summaries", value: CurveValue) -> Callable[[TrialResult], float | None]:
    def of(trial: TrialResult) -> float | None:
        found = summaries.of(trial.plan, value.name, value.stage)
        return getattr(found, _ENDS[value.end]) if found else None

    return of


def _kept(path: str) -> Callable[[TrialResult], float | None]:
    return lambda trial: trial.curves.get(path)
