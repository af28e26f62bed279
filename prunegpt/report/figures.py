"""Figures as PNG, SVG and PDF, without a browser; the same bytes for the same data."""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from prunegpt.errors import ReportError, unknown
from prunegpt.report.format import percent
from prunegpt.report.plot import GREY, OKABE_ITO, Plot

_MARKERS = {
    "circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P", "x": "X",
    "star": "*",
}  # fmt: skip
_DASHES = {"solid": "-", "dash": "--", "dashdot": "-.", "dot": ":"}
_MOST_NAMED = 20  # points of a front that have their names beside them: more would hide each other
_STEPS = {"vh": "steps-pre", "hv": "steps-post"}
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 9,
    "text.parse_math": False,  # labels are text
    "axes.unicode_minus": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "prunegpt",
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "svg.fonttype": "none",
}


@contextmanager
def _drawing(title: str, width: float, height: float) -> Iterator[Figure]:
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.axes[0].set_title(title, loc="left", fontweight="bold")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # every format gets this layout: another run of it would move things a little


def draw(plot: Plot) -> Figure:
    """A figure of this package on paper: the traces and axes that its drawings use, next to or below each other."""
    layout = plot.layout
    pairs = list(dict.fromkeys((trace.get("xaxis", "x"), trace.get("yaxis", "y")) for trace in plot.data))
    below = "yaxis2" in layout and "grid" not in layout
    columns = layout.get("grid", {}).get("columns", 1)
    rows = -(-len(pairs) // columns)
    cells = plot.data[0].get("y", ()) if plot.data[0]["type"] == "heatmap" else ()
    height = 5.0 if below else 1.6 + 0.28 * max(6, min(38, len(cells))) if cells else 4.0 if rows == 1 else 2.4 * rows
    width = 6.4 if columns == 1 else 3.2 * columns
    with _drawing(unescape(layout["title"]["text"]), width, height) as figure:
        if below:
            pairs = [("x", "y"), ("x", "y2")]
            made = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        else:
            made = figure.subplots(rows, columns, squeeze=False).ravel()
            for empty in made[len(pairs) :]:
                empty.set_axis_off()
        panels = dict(zip(pairs, made, strict=False))
        dashes: dict[str, str] = {}  # of lines that the legend shows with their points
        for trace in plot.data:
            _TRACES[trace["type"]](panels[trace.get("xaxis", "x"), trace.get("yaxis", "y")], trace, dashes)
        for shape in layout.get("shapes", ()):
            line = shape["line"]
            made[0].axhline(shape["y0"], color=line["color"], linewidth=line["width"], linestyle=_DASHES[line["dash"]])
        if plot.data[0]["type"] != "parcoords":
            for (x, y), panel in panels.items():
                _axis(panel.yaxis, layout["yaxis" + y[1:]])
                if not below or y == "y2":
                    _axis(panel.xaxis, layout["xaxis" + x[1:]])
                panel.grid(axis="x", visible=layout["xaxis" + x[1:]].get("showgrid", True))
        if layout.get("showlegend", True):
            _legend(figure, made[0])
    return figure


def restyled(figure: Figure, size: tuple[float, float] | None, title: str | None) -> Figure:
    """The figure with another title, and another width and height in inches; None leaves either as it is."""
    with rc_context(_STYLE):
        if title is not None:
            figure.axes[0].set_title(title, loc="left", fontweight="bold")
        if size is not None:
            figure.set_size_inches(*size)
            figure.set_layout_engine("constrained")
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
    return figure


def _line(axes: Axes, trace: Mapping[str, Any], dashes: dict[str, str]) -> None:
    if "fill" in trace:  # a band
        axes.fill(trace["x"], trace["y"], color=trace["line"]["color"], alpha=trace["opacity"], linewidth=0)
        return
    look, mark = trace.get("line", {}), trace.get("marker", {})
    if isinstance(mark.get("color"), list):
        points = axes.scatter(trace["x"], trace["y"], c=mark["color"], cmap="cividis", s=14)
        figure = axes.get_figure()
        assert figure is not None
        figure.colorbar(points, ax=axes, label=unescape(mark["colorbar"]["title"]["text"]))
        return
    colour = look.get("color", mark.get("color"))
    name, group = unescape(trace["name"]), trace.get("legendgroup", "")
    with_line, with_points = "lines" in trace["mode"], "markers" in trace["mode"]
    dash = _DASHES[look.get("dash", "solid")] if with_line else "none"
    marker = _MARKERS[mark["symbol"]] if with_points else ""
    for x, low, high in _intervals(trace):
        axes.plot([x, x], [low, high], color=colour, linewidth=1, marker="_", markersize=5)
    for y, low, high in _intervals(trace, "x"):
        axes.plot([low, high], [y, y], color=colour, linewidth=1, marker="|", markersize=5)
    axes.plot(
        trace["x"],
        trace["y"],
        color=colour,
        markeredgecolor=mark.get("line", {}).get("color", colour),
        linestyle=dash,
        linewidth=look.get("width", 2) * 0.7,
        alpha=trace.get("opacity", 1),
        marker=marker,
        markersize=9 if marker == "*" else 5,
        drawstyle=_STEPS.get(look.get("shape", ""), "default"),
    )
    if trace.get("showlegend", True):
        axes.plot([], [], color=colour, linestyle=dashes.get(group, dash), marker=marker, label=name)
    else:
        dashes[group] = dash
    if not with_points and len(trace.get("text", ())) in range(1, _MOST_NAMED + 1):
        axes.margins(x=0.12, y=0.1)
        for x, y, text in zip(trace["x"], trace["y"], trace["text"], strict=True):
            place: dict[str, Any] = {"xytext": (-5, 5), "textcoords": "offset points", "ha": "right", "fontsize": 7}
            axes.annotate(unescape(text), (x, y), **place)


def _bars(axes: Axes, trace: Mapping[str, Any], _dashes: dict[str, str]) -> None:
    """Bars as thick lines from their base, a point at each end; those that go across are below each other."""
    colour = trace["marker"]["color"]
    if trace.get("orientation") == "h":
        earlier = len(axes.containers)
        height = 0.8 / (earlier + 1) if earlier else 0.6
        names = [unescape(name) for name in trace["y"]]
        axes.barh(
            [place - earlier * height for place in range(len(names))], trace["x"], height, color=colour,
            label=unescape(trace["name"]),
        )  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        return
    tops = [trace["base"] + length for length in trace["y"]]
    for x, top in zip(trace["x"], tops, strict=True):
        axes.plot([x, x], [trace["base"], top], color=OKABE_ITO[5], linewidth=8, solid_capstyle="butt")
    for x, low, high in _intervals({**trace, "y": tops}):
        axes.plot([x, x], [low, high], color=trace["error_y"]["color"], linewidth=1)
    axes.plot(trace["x"], tops, linestyle="none", marker="o", color=colour, label=unescape(trace["name"]))


def _cells(axes: Axes, trace: Mapping[str, Any], _dashes: dict[str, str]) -> None:
    """A heat map, with the numbers in its cells where the trace has them."""
    values = [[math.nan if value is None else value for value in row] for row in trace["z"]]
    names = [unescape(name) for name in trace["y"]]
    image = axes.imshow(values, cmap="cividis", vmin=trace["zmin"], vmax=trace["zmax"], aspect="auto")
    step = max(1, len(trace["x"]) // 24)
    axes.set_xticks(range(0, len(trace["x"]), step), trace["x"][::step])
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    if "texttemplate" in trace:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if not math.isnan(value):
                    ink = "white" if value < (trace["zmin"] + trace["zmax"]) / 2 else "black"
                    axes.text(j, i, percent(round(value, 1)), ha="center", va="center", color=ink, fontsize=6)
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=axes, label=trace["colorbar"]["title"]["text"])


def _surface(axes: Axes, trace: Mapping[str, Any], _dashes: dict[str, str]) -> None:
    """Filled contours; nothing where the surface has no value."""
    heights = np.array([[math.nan if value is None else value for value in row] for row in trace["z"]])
    colours = "cividis_r" if trace["reversescale"] else "cividis"
    filled = axes.contourf(trace["x"], trace["y"], np.ma.masked_invalid(heights), 12, cmap=colours)
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(filled, ax=axes, label=trace["colorbar"]["title"]["text"])
    if "tickvals" in trace["colorbar"]:
        bar.set_ticks(trace["colorbar"]["tickvals"], labels=trace["colorbar"]["ticktext"])


def _parallel(axes: Axes, trace: Mapping[str, Any], _dashes: dict[str, str]) -> None:
    """Parallel coordinates: a line per trial through its place on every axis that it has a value of."""
    scaled = []
    for place, dimension in enumerate(trace["dimensions"]):
        low, high = dimension["range"]
        scaled.append([None if value is None else (value - low) / ((high - low) or 1) for value in dimension["values"]])
        axes.axvline(place, color=GREY, linewidth=1)
        ticks = dimension.get("tickvals", (low, high))
        texts = dimension.get("ticktext", [f"{tick:.3g}" for tick in ticks])
        for tick, text in zip(ticks, texts, strict=True):
            axes.annotate(
                unescape(text), (place, (tick - low) / ((high - low) or 1)), xytext=(3, 0),
                textcoords="offset points", fontsize=7, va="center", zorder=3,
            )  # fmt: skip
    lines = [
        [(place, height) for place, height in enumerate(heights) if height is not None]
        for heights in zip(*scaled, strict=True)
    ]
    look = trace["line"]
    drawn = LineCollection(lines, cmap="cividis_r" if look["reversescale"] else "cividis", linewidths=1, alpha=0.7)
    drawn.set_array(np.array(look["color"]))
    drawn.set_clim(look["cmin"], look["cmax"])
    axes.add_collection(drawn)
    axes.set_xlim(-0.1, len(scaled) - 0.6)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xticks(range(len(scaled)), [unescape(dimension["label"]) for dimension in trace["dimensions"]])
    axes.yaxis.set_visible(False)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)


_TRACES: Mapping[str, Callable[[Axes, Mapping[str, Any], dict[str, str]], None]] = {
    "scatter": _line, "bar": _bars, "heatmap": _cells, "contour": _surface, "parcoords": _parallel,
}  # fmt: skip


def _intervals(trace: Mapping[str, Any], which: str = "y") -> Iterator[tuple[float, float, float]]:
    """Of every point that has an interval on one axis its place on the other, and both ends."""
    other = "x" if which == "y" else "y"
    ends = trace.get(f"error_{which}", {"array": [], "arrayminus": []})
    for place, value, above, below in zip(trace[other], trace[which], ends["array"], ends["arrayminus"], strict=False):
        if above is not None and below is not None:
            yield place, value - below, value + above


def _axis(axis: Axis, layout: Mapping[str, Any]) -> None:
    axis.set_label_text(unescape(layout["title"]["text"]))
    which = "x" if axis is axis.axes.xaxis else "y"
    if "range" in layout:
        axis.axes.set(**{f"{which}lim": layout["range"]})
    if layout.get("type") == "log":
        axis.axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if "dtick" in layout else (1.0,)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif "tickvals" in layout:
        axis.set_ticks(layout["tickvals"], labels=[unescape(text) for text in layout["ticktext"]])
    elif layout.get("dtick") == 1:
        axis.set_major_locator(MaxNLocator(integer=True))
    elif layout.get("tickformat") == ".0%":
        axis.set_major_formatter(PercentFormatter(1, 0))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:  # below the axes, where it hides no data
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8)


def png(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots an inch."""
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """The figure as an SVG element whose text stays text."""
    buffer = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def pdf(figure: Figure) -> bytes:
    """The figure as one page of PDF, with its fonts in it and no date."""
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return buffer.getvalue()


FORMATS: Mapping[str, tuple[str, Callable[[Figure], bytes]]] = {
    "png": ("image/png", png),
    "svg": ("image/svg+xml", lambda figure: svg(figure).encode()),
    "pdf": ("application/pdf", pdf),
}  # of a file, by its suffix: media type, and what makes its bytes


def save(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of the suffix: .png, .svg or .pdf.

    Raises:
        ReportError: another suffix.
    """
    known = {f".{name}": make for name, (_, make) in FORMATS.items()}
    if path.suffix not in known:
        raise ReportError(unknown("figure format", path.suffix, known))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(known[path.suffix](figure))
