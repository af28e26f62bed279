"""Figures of any column over another, and of any curve over training, with a band over seeds where one is asked for."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prunegpt.records import TrialResult, comparable
from prunegpt.report.columns import NOT_APPLICABLE, Column, column
from prunegpt.report.plot import DENSE, LOG_FROM, Plot, layout_of, looks, need, trace_of
from prunegpt.report.rows import Row
from prunegpt.report.statistics import spread

if TYPE_CHECKING:
    from prunegpt.store.series import Series

SeriesOf = Callable[[TrialResult, str], "Sequence[Series]"]  # the stages' parts of a trial's curve of that name
_LIKE_PERPLEXITY = ("perplexity", "word_perplexity")
_BANDED = "Band: one sample standard deviation over seeds on each side of the mean."


@dataclass(frozen=True)
class _Line:
    """Means, by x, and their standard deviations over seeds; 0 of one seed."""

    x: list[float]
    mean: list[float]
    deviation: list[float]


def lines(
    results: Sequence[TrialResult],
    *,
    x: str,
    y: str,
    by: str | None,
    band: bool,
    title: str | None = None,
    log: Sequence[str] = (),
) -> Plot:
    """A column over another: a point per configuration, its seeds averaged, and a line per value of `by`.

    Raises:
        ReportError: no trial has numbers of both columns.
        UnknownPartError: a column that does not exist.
    """
    trials = comparable([trial for trial in results if trial.shown and not trial.implicit])
    across, upwards = column(x, trials), column(y, trials)
    named = column(by, trials) if by else None
    found: dict[str, list[tuple[float, float, float]]] = {}
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for trial in trials:
        groups.setdefault((trial.sweep, trial.group), []).append(trial)
    for (_, group), seeds in groups.items():
        row = Row(name=group, label=seeds[0].label, trials=tuple(seeds))
        xs, ys = _numbers(across, row), _numbers(upwards, row)
        if xs and ys:
            mean, deviation = spread(ys)
            found.setdefault(_label(named, row), []).append((spread(xs)[0], mean, deviation or 0.0))
    need(found, f"trials with numbers of {x} and {y}")
    made = {name: _Line(*(list(part) for part in zip(*sorted(points), strict=True))) for name, points in found.items()}
    axes: list[dict[str, Any]] = [
        {"title": {"text": one.header + (", %" if one.kind == "percent" else "")}} for one in (across, upwards)
    ]
    values = [value for line in made.values() for value in line.mean]
    positive = min(values) > 0
    if "y" in log or (y in _LIKE_PERPLEXITY and positive and max(values) >= LOG_FROM * min(values)):
        axes[1] |= {"type": "log", "dtick": "D2"}
    if "x" in log:
        axes[0] |= {"type": "log", "dtick": "D2"}
    title = title or f"{upwards.header} over {across.header.lower()}"
    layout = layout_of(title, *axes)
    return Plot(data=_traces(made, band, points=True), layout=layout, caption=_BANDED if band else "")


def over_training(
    results: Sequence[TrialResult], series_of: SeriesOf, *, y: str, band: bool, title: str | None = None
) -> Plot:
    """A curve over optimizer steps, through all stages of a chain: a line per trial, or with a band per configuration.

    Raises:
        ReportError: no trial has such a curve.
    """
    found: dict[str, list[tuple[list[float], list[float]]]] = {}
    for trial in results:
        if (curve := _joined(trial, series_of(trial, y))) is not None:
            found.setdefault(trial.group if band else trial.name, []).append(curve)
    need(found, f"trials with a curve {y}")
    made = {name: _mean(curves) for name, curves in found.items()}
    values = [value for line in made.values() for value in line.mean]
    upwards: dict[str, Any] = {"title": {"text": y}}
    if y in _LIKE_PERPLEXITY and max(values) >= LOG_FROM * min(values) > 0:
        upwards |= {"type": "log", "dtick": "D2"}
    layout = layout_of(title or f"{y} in training", {"title": {"text": "optimizer steps"}}, upwards)
    return Plot(data=_traces(made, band, points=False), layout=layout, caption=_BANDED if band else "")


def _numbers(of: Column, row: Row) -> list[float]:
    values = of.extract(row) if row.finished or not of.measured else ()
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _label(named: Column | None, row: Row) -> str:
    if named is None:
        return "all"
    value = next(iter(named.extract(row)), None)
    return DENSE if value in (None, NOT_APPLICABLE) else str(value)


def _joined(trial: TrialResult, parts: "Iterable[Series]") -> tuple[list[float], list[float]] | None:
    """A trial's curve; steps count on through the stages of its chain."""
    last = {stage.index: stage.steps for stage in trial.stages}
    steps: list[float] = []
    values: list[float] = []
    for part in sorted(parts, key=lambda part: part.stage):
        before = sum(count for stage, count in last.items() if stage < part.stage)
        finite = np.isfinite(part.values)
        steps += (part.steps[finite] + before).tolist()
        values += part.values[finite].tolist()
    return (steps, values) if steps else None


def _mean(curves: Sequence[tuple[list[float], list[float]]]) -> _Line:
    """Over the steps that all of them have."""
    tables = [dict(zip(*curve, strict=True)) for curve in curves]
    shared = [step for step in tables[0] if all(step in table for table in tables)]
    spreads = [spread([table[step] for table in tables]) for step in shared]
    return _Line(shared, [mean for mean, _ in spreads], [deviation or 0.0 for _, deviation in spreads])


def _traces(made: Mapping[str, _Line], band: bool, *, points: bool) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = []
    for name, (colour, symbol, dash) in looks(made).items():
        line, look = made[name], {"color": colour, "dash": dash, "width": 2}
        if band and any(line.deviation):
            low = [mean - deviation for mean, deviation in zip(line.mean, line.deviation, strict=True)]
            high = [mean + deviation for mean, deviation in zip(line.mean, line.deviation, strict=True)]
            around = trace_of([*line.x, *line.x[::-1]], [*high, *low[::-1]], name, mode="lines", fill="toself")
            data.append(around | {"line": {"color": colour, "width": 0}, "opacity": 0.2, "showlegend": False})
        mode = "lines+markers" if points and len(line.x) > 1 else "markers" if points else "lines"
        drawn = trace_of(line.x, line.mean, name, mode=mode, line=look)
        data.append(drawn | {"marker": {"color": colour, "symbol": symbol, "size": 7}, "legendgroup": name})
    return data
