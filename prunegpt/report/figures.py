"""Figures as PNG, SVG and PDF, without a browser; the same bytes for the same data."""

import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from prunegpt.errors import ReportError, unknown
from prunegpt.report.format import percent
from prunegpt.report.plots import OKABE_ITO, HeatMap, Plot, need

_MARKERS = {
    "circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P", "x": "X",
    "star": "*",
}  # fmt: skip
_DASHES = {"solid": "-", "dash": "--", "dashdot": "-.", "dot": ":"}
_NUMBERS_UP_TO = 200  # cells of a heat map that are written out
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
def _drawing(title: str, width: float = 6.4, height: float = 4.0) -> Iterator[tuple[Figure, Axes]]:
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(title, loc="left", fontweight="bold")
        yield figure, axes
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # every format gets this layout: another run of it would move things a little


def draw(plot: Plot) -> Figure:
    """A figure of `report.plots` on paper: lines, points with their intervals, bars, and a second panel below."""
    layout = plot.layout
    two = "yaxis2" in layout
    with _drawing(unescape(layout["title"]["text"]), height=5.0 if two else 4.0) as (figure, axes):
        panels = {"y": axes}
        if two:
            figure.delaxes(axes)
            panels = dict(zip(("y", "y2"), figure.subplots(2, 1, sharex=True, height_ratios=(2, 1)), strict=True))
            panels["y"].set_title(axes.get_title(loc="left"), loc="left", fontweight="bold")
        dashes: dict[str, str] = {}  # of lines that the legend shows with their points
        for trace in plot.data:
            (_bars if trace["type"] == "bar" else _line)(panels[trace.get("yaxis", "y")], trace, dashes)
        for shape in layout.get("shapes", ()):
            line = shape["line"]
            axes.axhline(shape["y0"], color=line["color"], linewidth=line["width"], linestyle=_DASHES[line["dash"]])
        for name, panel in panels.items():
            _upwards(panel, layout["yaxis" + name[1:]])
        _across(list(panels.values())[-1], layout["xaxis"])
        _legend(figure, axes if not two else panels["y"])
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
    colour = look.get("color", mark.get("color"))
    name, group = unescape(trace["name"]), trace.get("legendgroup", "")
    with_line, with_points = "lines" in trace["mode"], "markers" in trace["mode"]
    dash = _DASHES[look.get("dash", "solid")] if with_line else "none"
    marker = _MARKERS[mark["symbol"]] if with_points else ""
    for x, low, high in _intervals(trace):
        axes.plot([x, x], [low, high], color=colour, linewidth=1, marker="_", markersize=5)
    axes.plot(
        trace["x"],
        trace["y"],
        color=colour,
        linestyle=dash,
        linewidth=1.4,
        marker=marker,
        markersize=9 if marker == "*" else 5,
        drawstyle="steps-pre" if look.get("shape") == "vh" else "default",
    )
    if trace.get("showlegend", True):
        axes.plot([], [], color=colour, linestyle=dashes.get(group, dash), marker=marker, label=name)
    else:
        dashes[group] = dash
    if not with_points and "text" in trace:
        axes.margins(x=0.12, y=0.1)
        for x, y, text in zip(trace["x"], trace["y"], trace["text"], strict=True):
            place: dict[str, Any] = {"xytext": (-5, 5), "textcoords": "offset points", "ha": "right", "fontsize": 7}
            axes.annotate(unescape(text), (x, y), **place)


def _bars(axes: Axes, trace: Mapping[str, Any], _dashes: dict[str, str]) -> None:
    """Bars as thick lines from their base, a point at each end."""
    tops = trace["customdata"]
    for x, top in zip(trace["x"], tops, strict=True):
        axes.plot([x, x], [trace["base"], top], color=OKABE_ITO[5], linewidth=8, solid_capstyle="butt")
    for x, low, high in _intervals({**trace, "y": tops}):
        axes.plot([x, x], [low, high], color=trace["error_y"]["color"], linewidth=1)
    colour = trace["marker"]["color"]
    axes.plot(trace["x"], tops, linestyle="none", marker="o", color=colour, label=unescape(trace["name"]))


def _intervals(trace: Mapping[str, Any]) -> Iterator[tuple[float, float, float]]:
    """Of every point that has an interval its place across, and both ends."""
    ends = trace.get("error_y", {"array": [], "arrayminus": []})
    for x, y, above, below in zip(trace["x"], trace["y"], ends["array"], ends["arrayminus"], strict=False):
        if above is not None and below is not None:
            yield x, y - below, y + above


def _upwards(axes: Axes, layout: Mapping[str, Any]) -> None:
    axes.set_ylabel(layout["title"]["text"])
    if "range" in layout:
        axes.set_ylim(*layout["range"])
    if layout.get("type") == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _across(axes: Axes, layout: Mapping[str, Any]) -> None:
    axes.set_xlabel(layout["title"]["text"])
    if "dtick" in layout:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=layout.get("showgrid", True))


def sparsity_heat_map(data: HeatMap, title: str = "Sparsity by layer, %") -> Figure:
    """Share of zeros by decoder layer and tensor.

    Raises:
        ReportError: no tensors.
    """
    need(data.rows, "tensors selected for pruning")
    height = min(12.0, 1.6 + 0.28 * len(data.rows))
    with _drawing(title, width=min(12.0, 2.4 + 0.9 * len(data.columns)), height=height) as (figure, axes):
        values = [[math.nan if value is None else value for value in row] for row in data.values]
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")  # even for the colour-blind
        axes.set_xticks(range(len(data.columns)), data.columns, rotation=30, ha="right")
        axes.set_yticks(range(len(data.rows)), data.rows)
        axes.set_ylabel("decoder layer")
        axes.grid(visible=False)
        if len(data.rows) * len(data.columns) <= _NUMBERS_UP_TO:
            for (i, row), (j, _) in itertools.product(enumerate(values), enumerate(data.columns)):
                if not math.isnan(row[j]):
                    ink = "white" if row[j] < 50 else "black"
                    axes.text(j, i, percent(row[j]), ha="center", va="center", color=ink, fontsize=7)
        figure.colorbar(image, ax=axes)
    return figure


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
