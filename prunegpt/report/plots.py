"""Figures as Plotly takes them, and what they are made from: drawn in pages as they are, on paper by `report.figures`.

Colours are those of Okabe & Ito 2008 ("Color universal design"), which stay apart under every common form of colour
blindness; each line has its own marker and dash as well. Only traces that Plotly draws without `eval` are used, which
the content policy of pages forbids.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult
from prunegpt.report.columns import NOT_APPLICABLE, distilled, layer, method
from prunegpt.report.format import percent
from prunegpt.report.measure import WindowsOf, measure
from prunegpt.spec.names import by_parameter

if TYPE_CHECKING:
    from prunegpt.store.series import Series

DENSE = "not pruned"
CURVES = {"perplexity": 1.0, "sparsity": 100.0}  # that figures show of a training -> scale of their values
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_POINTS = 500  # of a curve
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.(.+)$")
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
_DASHES = ("solid", "dash", "dashdot", "dot")
GREY = "#666666"
_LOG_FROM = 4.0  # the largest value over the smallest from which an axis is logarithmic
_SPARSITY: Mapping[str, Any] = {"title": {"text": "sparsity of the pruned tensors, %"}}


@dataclass(frozen=True)
class SparsityPoint:
    """A configuration where sparsity and perplexity were measured."""

    label: str
    method: str  # one line of the figure each
    sparsity: float  # percent of the pruned tensors
    perplexity: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LayerBar:
    """What pruning one decoder layer did."""

    layer: int
    perplexity: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """Values over training; steps count on through the stages of a chain."""

    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class HeatMap:
    """Shares of zeros, percent, by block and tensor; None where a block has no such tensor."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def sparsity_points(results: Sequence[TrialResult], windows: WindowsOf) -> tuple[SparsityPoint, ...]:
    """A point for every configuration with a perplexity and counted zeros; seeds are averaged."""
    found = []
    for group, height in _measured(results, windows):
        counted = [trial.sparsity.pruned for trial in group if trial.sparsity is not None]
        if not counted:
            continue
        name = method(group[0])
        line = DENSE if name == NOT_APPLICABLE else name
        line += ", distilled" if distilled(group[0]) == "Yes" else ""
        found.append(SparsityPoint(group[0].group, line, 100 * sum(counted) / len(counted), *height))
    return tuple(found)


def dense_perplexity(points: Sequence[SparsityPoint]) -> float | None:
    """The lowest of models that were not pruned; None where there is none."""
    return min((point.perplexity for point in points if point.method == DENSE), default=None)


def pareto(points: Sequence[SparsityPoint]) -> list[SparsityPoint]:
    """The points that no other equals or beats in both, and beats in one; by sparsity."""
    front: list[SparsityPoint] = []
    for point in sorted(points, key=lambda point: (-point.sparsity, point.perplexity)):
        if not front or point.perplexity < front[-1].perplexity:
            front.append(point)
    return front[::-1]


def whole_models(points: Sequence[SparsityPoint], results: Sequence[TrialResult]) -> tuple[SparsityPoint, ...]:
    """The points of configurations that pruned more than a single decoder layer, or nothing."""
    single = {trial.group for trial in results if trial.sparsity is not None and len(trial.sparsity.layers) == 1}
    return tuple(point for point in points if point.label not in single)


def layer_bars(results: Sequence[TrialResult], windows: WindowsOf) -> tuple[LayerBar, ...]:
    """A bar for every configuration that pruned exactly one decoder layer, by block."""
    measured = [(layer(group[0]), height) for group, height in _measured(results, windows)]
    bars = [LayerBar(index, *height) for index, height in measured if isinstance(index, int)]
    return tuple(sorted(bars, key=lambda bar: (bar.layer, bar.perplexity)))


def _measured(
    results: Sequence[TrialResult], windows: WindowsOf
) -> Iterator[tuple[list[TrialResult], tuple[float, float | None, float | None]]]:
    """Each configuration that has a perplexity: its seeds, the perplexity, and the ends of its interval."""
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for trial in sorted(results, key=lambda trial: (trial.sweep, trial.order, trial.seed, trial.name)):
        if trial.measured and trial.shown and not trial.implicit:
            groups.setdefault((trial.sweep, trial.group), []).append(trial)
    for group in groups.values():
        if found := measure(group, windows):
            ends = (found.interval.low, found.interval.high) if found.interval else (None, None)
            yield group, (found.perplexity, *ends)


def in_figures(_stage: int, name: str) -> bool:
    """Which curves figures show, as the store asks for them."""
    return name in CURVES


def curves(trial: TrialResult, found: "Sequence[Series]") -> dict[str, Curve]:
    """Those of a trial's curves that figures show, by name; what is not finite is left out."""
    last = {stage.index: stage.steps for stage in trial.stages}
    for one in found:
        last[one.stage] = max(last.get(one.stage, 0), int(one.steps.max()))
    made = {}
    for name, scale in CURVES.items():
        parts = [one for one in found if one.name == name]
        if not parts:
            continue
        before = [sum(steps for stage, steps in last.items() if stage < one.stage) for one in parts]
        steps = np.concatenate([one.steps + start for one, start in zip(parts, before, strict=True)])
        values = scale * np.concatenate([one.values for one in parts])
        finite = np.isfinite(values)
        steps, values = steps[finite].astype(np.float64), values[finite]
        kept = extremes(values, _POINTS)
        made[name] = Curve(trial.name, tuple(steps[kept].tolist()), tuple(values[kept].tolist()))
    return made


def extremes(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Which points to keep, by position, in order.

    The points are cut into stretches of equal number; of each the least and the greatest finite value stay, and one
    that is not finite where there is one, so that a gap stays a gap. The first and the last point stay.

    Args:
        values: [points], NaN where a value is not finite.
        count: how many to keep at most, at least 5; all where there are not more.
    """
    total = len(values)
    if total <= count:
        return np.arange(total, dtype=np.int64)
    buckets = max(1, (count - 2) // 3)
    edges = np.linspace(0, total, buckets + 1).astype(np.int64)  # [buckets + 1]
    starts = edges[:-1]
    missing = ~np.isfinite(values)
    low = np.where(missing, np.inf, values)
    high = np.where(missing, -np.inf, values)
    kept = np.zeros(total, dtype=bool)
    kept[[0, total - 1]] = True
    bucket = np.repeat(np.arange(buckets), np.diff(edges))  # [points]
    for flags in (
        low == np.minimum.reduceat(low, starts)[bucket],
        high == np.maximum.reduceat(high, starts)[bucket],
        missing,
    ):
        positions = np.flatnonzero(flags)
        _, first = np.unique(bucket[positions], return_index=True)
        kept[positions[first]] = True
    return np.flatnonzero(kept).astype(np.int64)


def heat_map(by_tensor: Mapping[str, float]) -> HeatMap:
    """Shares of zeros by decoder layer (down) and tensor (across), from a SparsityRecord's `by_tensor`."""
    cells: dict[str, dict[str, float]] = {}
    columns: dict[str, None] = {}
    for name, share in by_parameter(by_tensor).items():
        found = _BLOCK.search(name.removesuffix(".weight"))
        row, column = (found[1], found[2]) if found else ("outside", name.removesuffix(".weight"))
        cells.setdefault(row, {})[column] = 100 * share
        columns[column] = None
    rows = sorted(cells, key=lambda row: (not row.isdigit(), int(row) if row.isdigit() else 0))
    return HeatMap(
        rows=tuple(rows),
        columns=tuple(columns),
        values=tuple(tuple(cells[row].get(column) for column in columns) for row in rows),
    )


class Plot(BaseModel):
    """What `Plotly.react` takes, and what is to be said below it."""

    model_config = ConfigDict(frozen=True)

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: str = ""


def over_sparsity(points: Sequence[SparsityPoint], title: str = "Perplexity over sparsity") -> Plot:
    """One line per method, through its lowest perplexity at each sparsity, with the interval of every point."""
    need(points, "measured trials")
    data: list[dict[str, Any]] = []
    for name, (colour, symbol, dash) in _looks(point.method for point in points).items():
        mine = sorted((point for point in points if point.method == name), key=lambda point: point.sparsity)
        lowest: dict[float, float] = {}
        for point in mine:
            at = round(point.sparsity, 1)
            lowest[at] = min(point.perplexity, lowest.get(at, math.inf))
        line = {"color": colour, "dash": dash, "width": 2}
        if name != DENSE:
            data.append(
                trace_of(list(lowest), list(lowest.values()), name, mode="lines", line=line)
                | {"showlegend": False, "hoverinfo": "skip", "legendgroup": name}
            )
        marked = _points(mine, name, colour, symbol)
        data.append(marked | {"error_y": _intervals(mine, colour, 4)})
    layout = layout_of(title, _SPARSITY, _perplexity(point.perplexity for point in points))
    dense = [point.perplexity for point in points if point.method == DENSE]
    if dense:
        across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": min(dense), "y1": min(dense)}
        layout["shapes"] = [across | {"line": {"color": GREY, "dash": "dot", "width": 1}}]
    return Plot(data=data, layout=layout)


def front(points: Sequence[SparsityPoint], title: str = "Sparsity against perplexity") -> Plot:
    """All configurations, and the front of those that no other beats in both sparsity and perplexity."""
    need(points, "measured trials")
    best = pareto(points)
    data = [
        trace_of(
            [point.sparsity for point in best],
            [point.perplexity for point in best],
            "front",
            mode="lines",
            line={"color": GREY, "width": 1.5, "shape": "vh"},  # up to a point's sparsity, its perplexity is attainable
        )
        | {"hoverinfo": "skip", "text": [escaped(point.label) for point in best]}
    ]
    for name, (colour, symbol, _) in _looks(point.method for point in points).items():
        data.append(_points([point for point in points if point.method == name], name, colour, symbol))
    return Plot(data=data, layout=layout_of(title, _SPARSITY, _perplexity(point.perplexity for point in points)))


def by_layer(
    bars: Sequence[LayerBar], title: str = "One layer pruned at a time", *, dense: float | None = None
) -> Plot:
    """Perplexity when one decoder layer is pruned; bars start at the dense model's."""
    need(bars, "trials that pruned a single layer")
    base = dense if dense is not None else min(bar.perplexity for bar in bars)
    layers = [bar.layer for bar in bars]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": "this layer pruned",
            "x": layers,
            "y": [bar.perplexity - base for bar in bars],
            "base": base,
            "marker": {"color": OKABE_ITO[0]},
            "customdata": [bar.perplexity for bar in bars],
            "hovertemplate": "layer %{x}: %{customdata:.4g}<extra></extra>",
            "error_y": _intervals(bars, GREY, 3),
        }
    ]
    if dense is not None:
        line = {"color": OKABE_ITO[1], "dash": "dash", "width": 2}
        data.append(trace_of([min(layers) - 0.5, max(layers) + 0.5], [dense, dense], "dense", mode="lines", line=line))
    across = {"title": {"text": "decoder layer"}, "dtick": 1 if len(set(layers)) <= 40 else None, "showgrid": False}
    return Plot(data=data, layout=layout_of(title, across, _perplexity([base, *(bar.perplexity for bar in bars)])))


def training(
    perplexity: Sequence[Curve], sparsity: Sequence[Curve] = (), title: str = "Perplexity and sparsity in training"
) -> Plot:
    """Perplexity over optimizer steps, and below it on the same steps the sparsity in percent."""
    need([curve for curve in (*perplexity, *sparsity) if curve.steps], "curve points")
    looks = _looks(curve.label for curve in (*perplexity, *sparsity))
    data = []
    named: set[str] = set()
    for axis, curves in (("y", perplexity), ("y2", sparsity)):
        for curve in curves:
            colour, symbol, dash = looks[curve.label]
            trace = trace_of(
                list(curve.steps),
                list(curve.values),
                curve.label,
                mode="lines+markers" if len(curve.steps) <= 30 else "lines",
                line={"color": colour, "dash": dash, "width": 2},
            )
            trace |= {"yaxis": axis, "legendgroup": curve.label, "showlegend": curve.label not in named}
            data.append(trace | {"marker": {"symbol": symbol, "color": colour, "size": 6}})
            named.add(curve.label)
    above = _perplexity(value for curve in perplexity for value in curve.values)
    layout = layout_of(title, {"title": {"text": "optimizer steps"}}, above)
    if sparsity:
        layout["yaxis"]["domain"] = [0.38, 1.0]
        layout["yaxis2"] = {"domain": [0.0, 0.3], "title": {"text": "sparsity, %"}, "range": [-3, 103], "anchor": "x"}
        layout["xaxis"]["anchor"] = "y2"
    return Plot(data=data, layout=layout)


def need(found: Sequence[Any] | Mapping[Any, Any], what: str) -> None:
    if not found:
        raise ReportError(f"a figure needs {what}; there are none yet. Run more of the sweep first.")


def _intervals(points: Sequence[SparsityPoint] | Sequence[LayerBar], colour: str, width: int) -> dict[str, Any]:
    """The interval of each point as bars over and below it; none where it has none."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if point.high is None else point.high - point.perplexity for point in points],
        "arrayminus": [None if point.low is None else point.perplexity - point.low for point in points],
        "color": colour,
        "thickness": 1.2,
        "width": width,
    }


def trace_of(x: Sequence[Any], y: Sequence[Any], name: str, **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "x": list(x), "y": list(y), "name": escaped(name), **more}


def _points(points: Sequence[SparsityPoint], name: str, colour: str, symbol: str) -> dict[str, Any]:
    marker = {"color": colour, "symbol": symbol, "size": 9}
    found = trace_of(
        [point.sparsity for point in points],
        [point.perplexity for point in points],
        name,
        mode="markers",
        marker=marker,
    )
    template = "%{hovertext}% sparse, perplexity %{y:.4g}<extra></extra>"
    return found | {
        "text": [escaped(point.label) for point in points],
        "hovertext": [f"{escaped(point.label)}<br>{percent(point.sparsity)}" for point in points],
        "customdata": [point.label for point in points],
        "hovertemplate": template,
        "legendgroup": name,
    }


def _looks(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, symbol and dash of each line; colours come round again with another dash."""
    distinct = dict.fromkeys(names)
    looks = {DENSE: (GREY, "star", "dot")} if DENSE in distinct else {}
    for index, name in enumerate(name for name in distinct if name != DENSE):
        turn, position = divmod(index, len(OKABE_ITO) - 1)  # not black: pages may be dark
        symbol = _SYMBOLS[(position + turn) % len(_SYMBOLS)]
        looks[name] = OKABE_ITO[position], symbol, _DASHES[turn % len(_DASHES)]
    return looks


def _perplexity(values: Iterable[float]) -> dict[str, Any]:
    positive = [value for value in values if value > 0]
    wide = bool(positive) and max(positive) / min(positive) >= _LOG_FROM
    return {"title": {"text": "perplexity"}, **({"type": "log", "dtick": "D2"} if wide else {})}


def layout_of(title: str, across: Mapping[str, Any], upwards: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": {"text": escaped(title)},
        "xaxis": {**across, "automargin": True},
        "yaxis": {**upwards, "automargin": True},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.25},
    }


def escaped(text: str) -> str:
    """Escapes text, because Plotly interprets a few HTML elements."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
