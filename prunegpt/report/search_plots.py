"""Figures of searched values: what the search came to, and what it depends on.

Importance is Optuna's PED-ANOVA over the trials of the store: Watanabe, Bansal & Hutter 2023, "PED-ANOVA: Efficiently
Quantifying Hyperparameter Importance in Arbitrary Subspaces". It needs no model of the objective, and takes categories
as well as numbers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegpt.errors import ReportError, counted
from prunegpt.records import EARLY_STOP, TrialResult
from prunegpt.report.plot import (
    GREY,
    LOG_FROM,
    OKABE_ITO,
    Plot,
    escaped,
    hover,
    layout_of,
    leading,
    need,
    said,
    short,
    trace_of,
)
from prunegpt.report.plots import Curve, curve_trace
from prunegpt.report.searched import Searched, ValueAxis, importances

_CELLS = 40  # of a contour, each way
_COLUMNS = 3  # of small figures next to each other
_MOST_CURVES = 60
_EACH_NUMBERED = 20  # trials up to which each has its number below it
_ON_A_LINE = "a contour needs trials that span both searched values; all are on one line."
_LATE, _BEST = OKABE_ITO[1], OKABE_ITO[0]
_MARKER: Mapping[str, Any] = {"color": OKABE_ITO[0], "symbol": "circle", "size": 7, "opacity": 0.75}


_Measured = Sequence[tuple[TrialResult, float]]  # trials with their objective


def check_history(searched: Searched, objective: str) -> _Measured:
    """What `history` draws. Raises ReportError where that is nothing, as all do that a figure asks first."""
    need(searched.name, "a search")
    found = searched.measured(objective)
    need(found, f"trials with a {objective}")
    return found


def both_measured(searched: Searched, x: str, y: str) -> list[tuple[TrialResult, float, float]]:
    """The trials that have two objectives, with both."""
    second = {trial.id: value for trial, value in searched.measured(y)}
    both = [(trial, value, second[trial.id]) for trial, value in searched.measured(x) if trial.id in second]
    need(both, f"trials with both {x} and {y}")
    return both


def varied(searched: Searched, objective: str) -> tuple[_Measured, list[str]]:
    """The trials that have an objective, and the searched values that differ between them."""
    found = searched.measured(objective)
    paths = searched.differing([trial for trial, _ in found])
    need(paths, f"trials with a {objective} whose searched values differ")
    return found, paths


def spanning(
    searched: Searched, objective: str, x: str, y: str
) -> tuple[_Measured, tuple[ValueAxis, ValueAxis], NDArray[np.float64]]:
    """The trials that a contour goes through, with their objective; its axes; where they are on them, [trials, 2]."""
    if x == y:
        raise ReportError(f"a contour needs two different searched values; both are {x!r}.")
    axes = searched.axis(x), searched.axis(y)
    found, places = [], []
    for trial, value in searched.measured(objective):
        own = searched.settings(trial)
        place = [axis.height(own[axis.path]) if axis.path in own else None for axis in axes]
        if None not in place:
            found.append((trial, value))
            places.append(place)
    need(found, f"trials with {x}, {y} and a {objective}")
    if len(found) < 4:
        raise ReportError(f"a contour needs four measured trials; there are {len(found)}. Run more of the search.")
    at = np.array(places, dtype=np.float64)
    if not np.ptp(at, axis=0).all():
        raise ReportError("a contour needs trials that differ in both searched values. Choose other ones.")
    if np.linalg.matrix_rank((at - at[0]) / np.ptp(at, axis=0)) < 2:
        raise ReportError(_ON_A_LINE)
    return found, axes, at


def history(searched: Searched, objective: str) -> Plot:
    """The objective of every trial in the order of the search, and the best so far."""
    found = check_history(searched, objective)
    order = {trial.id: place for place, trial in enumerate(searched.trials, start=1)}
    places = [order[trial.id] for trial, _ in found]
    better = min if searched.objectives[objective] == "minimize" else max
    best: list[float] = []
    for _, value in found:
        best.append(better(best[-1], value) if best else value)
    line = {"color": _LATE, "dash": "solid", "width": 2, "shape": "hv"}
    data = [
        trace_of(places, best, "best so far", mode="lines", line=line) | {"hoverinfo": "skip"},
        _trials(found, places, [value for _, value in found], objective) | {"name": "trials"},
    ]
    missing = len(searched.trials) - len(found)
    caption = f"{missing:,} of {counted(len(searched.trials), 'trial')} have no {objective}." if missing else ""
    across: dict[str, Any] = {"title": {"text": "trial of the search"}, "rangemode": "tozero"}
    if len(searched.trials) <= _EACH_NUMBERED:
        across["dtick"] = 1
    layout = layout_of(f"History of {objective}", across, _axis(objective, [value for _, value in found]))
    return Plot(data=data, layout=layout, caption=caption)


def objectives(searched: Searched, x: str, y: str) -> Plot:
    """Two objectives against each other, and the front that no trial beats in both."""
    both = both_measured(searched, x, y)
    sign = {name: 1 if searched.objectives.get(name) == "maximize" else -1 for name in (x, y)}
    best: list[tuple[float, float]] = []
    for _, a, b in sorted(both, key=lambda one: (-sign[x] * one[1], -sign[y] * one[2])):
        if not best or sign[y] * b > sign[y] * best[-1][1]:
            best.append((a, b))
    line = {"color": GREY, "dash": "solid", "width": 1.5, "shape": "hv"}  # from the best in x to the best in y
    names = [trial for trial, _, _ in both]
    data = [
        trace_of([a for a, _ in best], [b for _, b in best], "front", mode="lines", line=line) | {"hoverinfo": "skip"},
        _points(
            names,
            [first for _, first, _ in both],
            [second for _, _, second in both],
            [f"{x} {first:.4g}, {y} {second:.4g}" for _, first, second in both],
        )
        | {"name": "trials"},
    ]
    title = f"{y} against {x}"
    across, upwards = _axis(x, [first for _, first, _ in both]), _axis(y, [second for _, _, second in both])
    better = ", ".join(f"{name}: {searched.objectives.get(name, 'minimize')}" for name in (x, y))
    caption = f"{counted(len(best), 'trial')} on the front ({better})."
    return Plot(data=data, layout=layout_of(title, across, upwards), caption=caption)


def slices(searched: Searched, objective: str) -> Plot:
    """The objective over each searched value, a small figure each."""
    found, paths = varied(searched, objective)
    columns = min(_COLUMNS, len(paths))
    heights = _axis(objective, [value for _, value in found])
    layout = layout_of(f"{objective} over each searched value", {}, {})
    layout |= {"grid": {"rows": -(-len(paths) // columns), "columns": columns, "pattern": "independent"}}
    data = []
    for place, path in enumerate(paths):
        suffix = str(place + 1) if place else ""
        have = [(trial, value) for trial, value in found if path in searched.settings(trial)]
        axis = searched.axis(path)
        places = [axis.shown(searched.settings(trial)[path]) for trial, _ in have]
        trace = _trials(have, places, [value for _, value in have], objective)
        data.append(trace | {"name": path, "showlegend": False, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}"})
        layout[f"xaxis{suffix}"] = {"title": {"text": escaped(axis.label)}, "automargin": True, **axis.layout}
        first = place % columns == 0
        layout[f"yaxis{suffix}"] = {**heights, "automargin": True, "title": {"text": objective if first else ""}}
    return Plot(data=data, layout=layout)


def contour(searched: Searched, objective: str, x: str, y: str) -> Plot:
    """The objective over two searched values, interpolated linearly between the trials, which are drawn on it."""
    found, axes, at = spanning(searched, objective, x, y)
    settings = [searched.settings(trial) for trial, _ in found]
    values = np.array([value for _, value in found])
    wide = bool((values > 0).all() and values.max() / values.min() >= LOG_FROM)
    grid = [np.linspace(*ends, _CELLS) for ends in zip(at.min(0), at.max(0), strict=True)]
    surface = _interpolated(at, np.log10(values) if wide else values, grid)  # [y, x]
    heights = [[None if math.isnan(value) else value for value in row] for row in surface.tolist()]
    ticks = _ticks(values, wide)
    bar = {"title": {"text": objective, "side": "right"}, "thickness": 12, "outlinewidth": 0, **ticks}
    data = [
        {
            "type": "contour", "x": axes[0].positions(grid[0]), "y": axes[1].positions(grid[1]), "z": heights,
            "colorscale": "Cividis", "reversescale": searched.objectives[objective] == "maximize", "hoverinfo": "skip",
            "connectgaps": False, "colorbar": bar, "meta": "summary", "line": {"width": 0.5}, "showscale": True,
        },
        _points(
            [trial for trial, _ in found],
            [axes[0].shown(one[x]) for one in settings],
            [axes[1].shown(one[y]) for one in settings],
            [f"{objective} {value:.4g}" for value in values],
        )
        | {
            "marker": {"color": "#ffffff", "symbol": "circle", "size": 6, "line": {"color": "#000000", "width": 1}},
            "showlegend": False,
        },
    ]  # fmt: skip
    across, upwards = ({"title": {"text": escaped(axis.label)}, **axis.layout} for axis in axes)
    caption = "Between the trials, the dots, it is interpolated linearly; nothing is shown outside them."
    return Plot(data=data, layout=layout_of(f"{objective} over two searched values", across, upwards), caption=caption)


def _interpolated(at: Any, values: Any, grid: Sequence[Any]) -> Any:
    from scipy.interpolate import griddata
    from scipy.spatial import QhullError

    low, width = at.min(0), np.ptp(at, axis=0)
    x, y = np.meshgrid((grid[0] - low[0]) / width[0], (grid[1] - low[1]) / width[1])
    places, where = np.unique((at - low) / width, axis=0, return_inverse=True)
    means = np.bincount(where.ravel(), values) / np.bincount(where.ravel())
    try:
        return griddata(places, means, (x, y), method="linear")
    except QhullError as error:
        raise ReportError(_ON_A_LINE) from error


def parallel(searched: Searched, objective: str) -> Plot:
    """One line per trial over its searched values to its objective, the better the darker."""
    found, paths = varied(searched, objective)
    values = [value for _, value in found]
    dimensions = []
    for path in paths:
        axis = searched.axis(path)
        settings = [searched.settings(trial) for trial, _ in found]
        heights = [axis.height(one[path]) if path in one else None for one in settings]
        dimensions.append({"label": escaped(axis.label), "values": heights, **axis.dimension})
    wide = min(values) > 0 and max(values) / min(values) >= LOG_FROM
    reached = [math.log10(value) for value in values] if wide else values
    ends = [min(reached), max(reached)]
    last = {"label": escaped(objective), "values": reached, "log": wide, "range": ends}
    last |= _ticks(np.array(values), wide)
    trace = {
        "type": "parcoords", "name": "trials", "dimensions": [*dimensions, last],
        "line": {
            "color": reached, "colorscale": "Cividis", "cmin": ends[0], "cmax": ends[1],
            "reversescale": searched.objectives[objective] == "maximize",
        },
        **leading(*_leads([trial for trial, _ in found], [f"{objective} {value:.4g}" for value in values])),
    }  # fmt: skip
    return Plot(data=[trace], layout=layout_of(f"Searched values and {objective}", {}, {}))


def importance(searched: Searched) -> Plot:
    """How much each objective depends on each searched value: a bar each, those of one objective sum to 1."""
    shares: dict[str, Mapping[str, float]] = {}
    reasons: dict[str, str] = {}
    for objective in searched.objectives:
        try:
            shares[objective] = importances(searched, objective)
        except ReportError as error:
            reasons[objective] = str(error)
    if not shares:
        raise ReportError(next(iter(reasons.values()), "importance needs a search; there is none."))
    paths = list(dict.fromkeys(path for found in shares.values() for path in sorted(found, key=found.__getitem__)))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": escaped(objective),
            "x": [found.get(path, 0.0) for path in paths],
            "y": [escaped(short(path, paths)) for path in paths],
            "marker": {"color": colour},
            "meta": "summary",
            "hovertemplate": "%{y}: %{x:.1%}<extra>" + escaped(objective) + "</extra>",
        }
        for (objective, found), colour in zip(shares.items(), _colours(), strict=False)
    ]
    across = {"title": {"text": "share of importance (PED-ANOVA)"}, "tickformat": ".0%", "rangemode": "tozero"}
    layout = layout_of("What the objectives depend on", across, {"title": {"text": ""}})
    caption = " ".join(f"{objective}: {reason}" for objective, reason in reasons.items())
    return Plot(data=data, layout={**layout, "barmode": "group"}, caption=caption)


def _colours() -> Iterable[str]:
    return OKABE_ITO[:-1]


def intermediate(searched: Searched, curves: Sequence[tuple[TrialResult, Curve]]) -> Plot:
    """Perplexity while trials trained; those that were stopped early are dashed and end where they were stopped."""
    need(curves, "trials that were measured while they trained")
    shown = sorted(curves, key=lambda one: (one[0].reason != EARLY_STOP, one[0].order))[:_MOST_CURVES]
    data = []
    named: set[str] = set()
    for trial, curve in shown:
        stopped = trial.reason == EARLY_STOP
        name = "stopped early" if stopped else trial.state
        line = {"color": _LATE if stopped else _BEST, "dash": "dash" if stopped else "solid", "width": 1.25}
        trace = curve_trace(curve, line) | {"name": name, "legendgroup": name, "showlegend": name not in named}
        data.append(trace | {"marker": {"color": line["color"], "symbol": "circle", "size": 4}})
        named.add(name)
    early = sum(trial.reason == EARLY_STOP for trial in searched.trials)
    caption = f"{early:,} of {counted(len(searched.trials), 'trial')} were stopped early"
    caption += f"; {len(shown)} of {len(curves):,} curves are drawn." if len(shown) < len(curves) else "."
    values = [value for _, curve in shown for value in curve.values]
    layout = layout_of("Intermediate values", {"title": {"text": "optimizer steps"}}, _axis("perplexity", values))
    return Plot(data=data, layout=layout, caption=caption)


def _trials(
    found: Sequence[tuple[TrialResult, float]],
    x: Sequence[Any],
    y: Sequence[Any],
    objective: str,
) -> dict[str, Any]:
    texts = [f"{objective} {value:.4g}" for value in y]
    return _points([trial for trial, _ in found], x, y, texts)


def _points(trials: Sequence[TrialResult], x: Sequence[Any], y: Sequence[Any], texts: Sequence[str]) -> dict[str, Any]:
    return trace_of(x, y, "trials", mode="markers", marker=dict(_MARKER)) | leading(*_leads(trials, texts))


def _leads(trials: Sequence[TrialResult], texts: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    return [[trial.address] for trial in trials], [
        hover(trial.name, text, swept=trial.swept) for trial, text in zip(trials, texts, strict=True)
    ]


def _axis(name: str, values: Sequence[float]) -> dict[str, Any]:
    wide = min(values) > 0 and max(values) / min(values) >= LOG_FROM
    return {"title": {"text": escaped(name)}, **({"type": "log", "dtick": "D2"} if wide else {})}


def _ticks(values: Any, wide: bool) -> dict[str, Any]:
    """Where a scale of the logarithm of these values has ticks, and their labels; nothing where it is no logarithm."""
    if not wide:
        return {}
    first, last = (math.floor(math.log10(end)) for end in (values.min(), values.max()))
    places = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    inside = [value for value in places if values.min() <= value <= values.max()]
    inside = inside if len(inside) > 1 else [float(values.min()), float(values.max())]
    return {"tickvals": [math.log10(value) for value in inside], "ticktext": [said(value) for value in inside]}
