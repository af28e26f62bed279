"""What the curves of trials come to, as fields: the last, the least and the greatest value of each."""

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING

from prunegpt.records import TrialResult
from prunegpt.report.field import TrialField

if TYPE_CHECKING:
    from prunegpt.store.curves import CurveEnds, CurveName, Summaries

CURVE = "curve."  # what keys of these fields begin with
_LAST, _LOW, _HIGH = ("last", "last"), ("min", "low"), ("max", "high")  # in paths, and of `CurveEnds`
_SAID = {"last": "last", "min": "least", "max": "greatest"}


def curve_fields(summaries: "Summaries", *, every: bool = True) -> Mapping[str, TrialField]:
    """The fields by path: last.NAME, min.NAME and max.NAME of the last stage that has such a curve.

    Args:
        every: those of single tensors too, and where several stages have a curve, stages.N.last.NAME and so on.
    """
    found: list[TrialField] = []
    for metric in summaries.metrics.values():
        if every or not metric.of_tensor:
            stages = metric.stages if every and len(metric.stages) > 1 else ()
            found += [field for stage in (None, *stages) for field in _fields(metric, stage, summaries)]
    return {field.key.removeprefix(CURVE): field for field in found}


def _fields(metric: "CurveName", stage: int | None, summaries: "Summaries") -> Iterator[TrialField]:
    place, where = ("", "") if stage is None else (f"stages.{stage}.", f", stage {stage}")
    for shown, (end, kept) in ((True, _LAST), (metric.rises, _LOW), (metric.falls, _HIGH)):
        if shown:
            yield TrialField(
                key=f"{CURVE}{place}{end}.{metric.name}",
                label=f"{metric.name}, {_SAID[end]}{where}",
                kind="number",
                about=f"{_SAID[end]} value of the curve {metric.name}{where}",
                of=_end(summaries, metric.name, stage, attrgetter(kept)),
                origin="curve",
            )


def _end(
    summaries: "Summaries", name: str, stage: int | None, of: "Callable[[CurveEnds], float | None]"
) -> Callable[[TrialResult], float | None]:
    def value(trial: TrialResult) -> float | None:
        found = summaries.of(trial.plan, name, stage)
        return of(found) if found else None

    return value
