"""A trial's curves as rows of a W&B history: one a stage and step, in the order they come to be."""

from collections.abc import Iterable, Mapping
from typing import Any

from prunegpt.records import Point
from prunegpt.spec.plan import TrialPlan

_NO_CURVES = ("total_steps",)  # points that say something else than a value over time
PLAIN = ("perplexity",)  # also without the stage before it: what sweeps of W&B search and stop by

Row = dict[str, Any]


def stage_name(trial: TrialPlan, index: int) -> str:
    """`1-prune`: what the curves of a stage begin with."""
    kind = trial.stages[index].kind if 0 <= index < len(trial.stages) else "stage"
    return f"{index}-{kind}"


def rows_of(trial: TrialPlan, points: Iterable[Point]) -> list[Row]:
    """All rows, by stage and step; a further point of an attempt adds to the last row or comes behind it.

    A row's place is its `_step`: whoever sends it again, sends the same.
    """
    found: dict[tuple[int, int], Row] = {}
    for point in points:
        if point.name in _NO_CURVES:
            continue
        stage = stage_name(trial, point.stage)
        row = found.setdefault((point.stage, point.step), {f"{stage}/step": point.step})
        row["_timestamp"] = max(float(row.get("_timestamp", 0.0)), point.time)
        if point.value is None:
            continue
        row[f"{stage}/{point.name}"] = point.value
        if point.name in PLAIN:
            row[point.name] = point.value
        if point.tokens:
            row[f"{stage}/tokens"] = point.tokens
        if point.epoch:
            row[f"{stage}/epoch"] = point.epoch
    return [found[place] for place in sorted(found)]


def axes_of(trial: TrialPlan) -> Mapping[str, str]:
    """Glob of curves -> the one they are drawn over."""
    names = [stage_name(trial, index) for index in range(len(trial.stages))]
    return {f"{name}/*": f"{name}/step" for name in names}
