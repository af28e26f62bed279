"""Figures as Plotly takes them, as JSON: drawn in pages as they are, and on paper by `report.figures`.

Colours are those of Okabe & Ito 2008 ("Color universal design"), which stay apart under every common form of colour
blindness; each line has its own marker and dash as well. Only traces that Plotly draws without `eval` are used, which
the content policy of pages forbids.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from prunegpt.errors import ReportError
from prunegpt.report.figure_data import DENSE, OKABE_ITO, Curve, LayerBar, SparsityPoint, pareto
from prunegpt.report.format import percent

_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
_DASHES = ("solid", "dash", "dashdot", "dot")
GREY = "#666666"
_LOG_FROM = 4.0  # the largest value over the smallest from which an axis is logarithmic
_SPARSITY: Mapping[str, Any] = {"title": {"text": "sparsity of the pruned tensors, %"}}


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
        raise ReportError(f"a figure needs {what}, but there are none yet. Run more of the sweep first.")


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
