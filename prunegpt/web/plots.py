"""Figures for Plotly, as JSON: the same data and colours as the matplotlib ones, without fonts and backgrounds.

Only traces that Plotly draws without `eval` are used, which the content policy forbids; so parallel coordinates are
plain lines.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunegpt.report.errors import ReportError
from prunegpt.report.figure_data import DENSE, OKABE_ITO, Curve, LayerBar, SparsityPoint, pareto
from prunegpt.web.endpoint import Answer

_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
_DASHES = ("solid", "dash", "dashdot", "dot")
_GREY = "#666666"
_LOG_FROM = 4.0  # the largest value over the smallest from which an axis is logarithmic
_SHADES = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")  # cividis, even for the colour-blind
_BEST_LINES = 300  # trials in parallel coordinates that are all drawn: thousands take a browser seconds
_OTHER_LINES = 200  # of the others, evenly from the next best to the worst


class Plot(Answer):
    """What `Plotly.react` takes, and what is to be said below it."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: str = ""


def over_sparsity(points: Sequence[SparsityPoint], title: str = "Perplexity over sparsity") -> Plot:
    """A line a method, through its lowest perplexity at each sparsity, with the interval of every point."""
    _need(points, "measured trials")
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
                _trace(list(lowest), list(lowest.values()), name, mode="lines", line=line)
                | {"showlegend": False, "hoverinfo": "skip", "legendgroup": name}
            )
        marked = _points(mine, name, colour, symbol)
        marked["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [_above(point.high, point.perplexity) for point in mine],
            "arrayminus": [_above(point.perplexity, point.low) for point in mine],
            "color": colour,
            "thickness": 1.2,
            "width": 4,
        }
        data.append(marked)
    return Plot(data=data, layout=_layout(title, _SPARSITY, _perplexity(point.perplexity for point in points)))


def front(points: Sequence[SparsityPoint], title: str = "Sparsity against perplexity") -> Plot:
    """All configurations, and the front of those that no other beats in both sparsity and perplexity."""
    _need(points, "measured trials")
    best = pareto(points)
    data = [
        _trace(
            [point.sparsity for point in best],
            [point.perplexity for point in best],
            "front",
            mode="lines",
            line={"color": _GREY, "width": 1.5, "shape": "vh"},  # up to a point's sparsity, its perplexity can be had
        )
        | {"hoverinfo": "skip"}
    ]
    for name, (colour, symbol, _) in _looks(point.method for point in points).items():
        data.append(_points([point for point in points if point.method == name], name, colour, symbol))
    return Plot(data=data, layout=_layout(title, _SPARSITY, _perplexity(point.perplexity for point in points)))


def by_layer(
    bars: Sequence[LayerBar], title: str = "One layer pruned at a time", *, dense: float | None = None
) -> Plot:
    """Perplexity when one decoder block is pruned; bars start at the dense model's."""
    _need(bars, "trials that pruned a single layer")
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
            "hovertemplate": "block %{x}: %{customdata:.4g}<extra></extra>",
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [_above(bar.high, bar.perplexity) for bar in bars],
                "arrayminus": [_above(bar.perplexity, bar.low) for bar in bars],
                "color": _GREY,
                "thickness": 1.2,
                "width": 3,
            },
        }
    ]
    if dense is not None:
        line = {"color": OKABE_ITO[1], "dash": "dash", "width": 2}
        data.append(_trace([min(layers) - 0.5, max(layers) + 0.5], [dense, dense], "dense", mode="lines", line=line))
    across = {"title": {"text": "decoder block"}, "dtick": 1 if len(set(layers)) <= 40 else None, "showgrid": False}
    return Plot(data=data, layout=_layout(title, across, _perplexity([base, *(bar.perplexity for bar in bars)])))


def training(
    perplexity: Sequence[Curve], sparsity: Sequence[Curve] = (), title: str = "Perplexity and sparsity in training"
) -> Plot:
    """Perplexity over optimizer steps, and below it on the same steps the sparsity in percent."""
    _need([curve for curve in (*perplexity, *sparsity) if curve.steps], "curve points")
    looks = _looks(curve.label for curve in (*perplexity, *sparsity))
    data = []
    named: set[str] = set()
    for axis, curves in (("y", perplexity), ("y2", sparsity)):
        for curve in curves:
            colour, symbol, dash = looks[curve.label]
            trace = _trace(
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
    layout = _layout(title, {"title": {"text": "optimizer steps"}}, above)
    if sparsity:
        layout["yaxis"]["domain"] = [0.38, 1.0]
        layout["yaxis2"] = {"domain": [0.0, 0.3], "title": {"text": "sparsity, %"}, "range": [-3, 103], "anchor": "x"}
        layout["xaxis"]["anchor"] = "y2"
    return Plot(data=data, layout=layout)


def parallel(
    settings: Mapping[str, Sequence[Any]],
    perplexity: Sequence[float],
    names: Sequence[str],
    title: str = "Searched values and perplexity",
) -> Plot:
    """A line a trial over its searched values to its perplexity, the lower the darker.

    Of many trials, the best and a sample of the others, which the caption says.

    Args:
        settings: axis label -> the value of each trial.
        perplexity: of each trial.
        names: of each trial.
    """
    _need(perplexity, "measured trials with searched values")
    ordered = sorted(range(len(perplexity)), key=lambda index: perplexity[index])
    ranks = _drawn_ranks(len(ordered))
    kept = [ordered[rank] for rank in ranks]
    axes = {**settings, "perplexity": perplexity}
    placed = {
        label: _placed([values[index] for index in kept], label == "perplexity") for label, values in axes.items()
    }
    shades = len(_SHADES)
    data = []
    for shade in reversed(range(shades)):  # the best on top
        x: list[float | None] = []
        y: list[float | None] = []
        texts: list[str] = []
        shown: list[float] = []
        for place, (rank, index) in enumerate(zip(ranks, kept, strict=True)):
            if rank * shades // len(ordered) != shade:
                continue
            shown.append(perplexity[index])
            told = "<br>".join(_escaped(f"{label}: {_said(values[index])}") for label, values in axes.items())
            for column, (heights, _) in enumerate(placed.values()):
                if heights[place] is None:  # the line passes an axis whose value the trial has not
                    continue
                x.append(column)
                y.append(heights[place])
                texts.append(f"{_escaped(names[index])}<br>{told}")
            x.append(None)
            y.append(None)
            texts.append("")
        if shown:
            name = " to ".join(dict.fromkeys(f"{value:.4g}" for value in (shown[0], shown[-1])))
            look = {"line": {"color": _SHADES[shade], "width": 1.5}, "marker": {"color": _SHADES[shade], "size": 5}}
            trace = _trace(x, y, name, mode="lines+markers", **look)
            data.append(trace | {"text": texts, "hoverinfo": "text", "connectgaps": False, "legendrank": shade})
    marks = [
        {
            "x": column, "y": height, "text": text, "showarrow": False, "font": {"size": 10},
            **(_BESIDE if 0 < height < 1 else _ABOVE if height else _BELOW),
        }
        for column, (_, ticks) in enumerate(placed.values())
        for height, text in ticks
    ]  # fmt: skip
    count = len(placed)
    layout = _layout(
        title,
        {
            "tickvals": list(range(count)),
            "ticktext": [_escaped(label) for label in placed],
            "range": [-0.4, count - 0.8],
            "zeroline": False,
        },
        {"visible": False, "range": [-0.1, 1.1]},
    )
    layout["annotations"] = marks
    layout["hovermode"] = "closest"
    layout["shapes"] = [
        {"type": "line", "x0": column, "x1": column, "y0": 0, "y1": 1, "line": {"color": _GREY, "width": 1}}
        for column in range(count)
    ]
    some = f"The {_BEST_LINES} best of {len(ordered):,} trials, and {_OTHER_LINES} of the others, the worst included."
    caption = some if len(kept) < len(ordered) else ""
    return Plot(data=data, layout=layout, caption=caption)


def _drawn_ranks(trials: int) -> list[int]:
    """Which of so many trials are drawn, by their rank from 0: all, or the best and others at even distances."""
    others = trials - _BEST_LINES
    if others <= _OTHER_LINES:
        return list(range(trials))
    return [
        *range(_BEST_LINES),
        *(_BEST_LINES + round(place * (others - 1) / (_OTHER_LINES - 1)) for place in range(_OTHER_LINES)),
    ]


def importance(shares: Mapping[str, float], title: str = "What perplexity depends on (PED-ANOVA)") -> Plot:
    """A bar for each searched value, by its share."""
    _need(shares, "searched values whose importance can be told")
    ordered = sorted(shares.items(), key=lambda item: item[1])
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [share for _, share in ordered],
            "y": [_escaped(name) for name, _ in ordered],
            "marker": {"color": OKABE_ITO[0]},
            "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
        }
    ]
    across = {"title": {"text": "share of importance"}, "tickformat": ".0%", "rangemode": "tozero"}
    return Plot(data=data, layout=_layout(title, across, {"automargin": True}))


_BESIDE: Mapping[str, Any] = {"xanchor": "right", "xshift": -4}  # where a tick's text is clear of the lines
_ABOVE: Mapping[str, Any] = {"xanchor": "center", "yanchor": "bottom"}
_BELOW: Mapping[str, Any] = {"xanchor": "center", "yanchor": "top"}
_SPARSITY: Mapping[str, Any] = {"title": {"text": "sparsity of the pruned tensors, %"}}


def _need(found: Sequence[Any] | Mapping[Any, Any], what: str) -> None:
    if not found:
        raise ReportError(f"a figure needs {what}, but there are none yet.")


def _above(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _trace(x: Sequence[Any], y: Sequence[Any], name: str, **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "x": list(x), "y": list(y), "name": _escaped(name), **more}


def _points(points: Sequence[SparsityPoint], name: str, colour: str, symbol: str) -> dict[str, Any]:
    marker = {"color": colour, "symbol": symbol, "size": 9}
    found = _trace(
        [point.sparsity for point in points],
        [point.perplexity for point in points],
        name,
        mode="markers",
        marker=marker,
    )
    template = "%{text}<br>%{x:.1f} % sparse, perplexity %{y:.4g}<extra></extra>"
    return found | {
        "text": [_escaped(point.label) for point in points],
        "customdata": [point.label for point in points],
        "hovertemplate": template,
        "legendgroup": name,
    }


def _looks(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, symbol and dash of each line; colours come round again with another dash."""
    distinct = dict.fromkeys(names)
    looks = {DENSE: (_GREY, "star", "dot")} if DENSE in distinct else {}
    for index, name in enumerate(name for name in distinct if name != DENSE):
        turn, position = divmod(index, len(OKABE_ITO) - 1)  # not black: pages may be dark
        symbol = _SYMBOLS[(position + turn) % len(_SYMBOLS)]
        looks[name] = OKABE_ITO[position], symbol, _DASHES[turn % len(_DASHES)]
    return looks


def _perplexity(values: Iterable[float]) -> dict[str, Any]:
    positive = [value for value in values if value > 0]
    wide = bool(positive) and max(positive) / min(positive) >= _LOG_FROM
    return {"title": {"text": "perplexity"}, **({"type": "log", "dtick": "D2"} if wide else {})}


def _layout(title: str, across: Mapping[str, Any], upwards: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": {"text": _escaped(title)},
        "xaxis": {**across, "automargin": True},
        "yaxis": {**upwards, "automargin": True},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.25},
    }


def _placed(values: Sequence[Any], logarithmic: bool) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Heights of values on an axis from 0 to 1, and its ticks; what is no number is spread evenly."""
    present = [value for value in values if value is not None]
    numeric = all(_is_number(value) for value in present)
    if present and numeric:
        low, high = float(min(present)), float(max(present))
        scale = math.log if low > 0 and (logarithmic or high / low >= 100) else float
        width = scale(high) - scale(low)
        heights = [None if value is None else (scale(value) - scale(low)) / width if width else 0.5 for value in values]
        ticks = [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")] if width else [(0.5, f"{low:.3g}")]
        return heights, ticks
    distinct = sorted({_said(value) for value in present})
    height = {text: (index + 0.5) / len(distinct) for index, text in enumerate(distinct)}
    return [None if value is None else height[_said(value)] for value in values], [
        (at, _escaped(text)) for text, at in height.items()
    ]


def _is_number(value: Any) -> bool:
    """Whether an axis can hold it: finite, and no larger than a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _escaped(text: str) -> str:
    """Plotly takes a few HTML elements in texts; ours are text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
