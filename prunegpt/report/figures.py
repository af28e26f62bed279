"""Figures as PNG, SVG and HTML, without a browser; the same bytes for the same data.

Colours are those of Okabe & Ito 2008 ("Color universal design"), which stay apart under every common form of colour
blindness; each line has its own marker and dash as well.
"""

import io
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from prunegpt.errors import unknown
from prunegpt.report.errors import ReportError
from prunegpt.report.figure_data import DENSE, OKABE_ITO, Curve, HeatMap, LayerBar, SparsityPoint, pareto
from prunegpt.report.render.html import page

_MARKERS = "osD^vPX<"
_DASHES = ("-", "--", "-.", ":")
_GREY = "#666666"
_LOG_FROM = 4.0  # the largest value over the smallest from which an axis is logarithmic
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


def perplexity_over_sparsity(points: Sequence[SparsityPoint], title: str = "Perplexity over sparsity") -> Figure:
    """A line a method, through its lowest perplexity at each sparsity, with the interval of every point.

    Raises:
        ReportError: no points.
    """
    _need(points, "measured trials")
    with _drawing(title) as (figure, axes):
        for name, (colour, marker, dash) in _looks(point.method for point in points).items():
            mine = [point for point in points if point.method == name]
            if name == DENSE:
                axes.axhline(min(point.perplexity for point in mine), color=colour, linewidth=0.8, linestyle=":")
            lowest: dict[float, float] = {}
            for point in sorted(mine, key=lambda point: point.sparsity):
                at = round(point.sparsity, 1)
                lowest[at] = min(point.perplexity, lowest.get(at, math.inf))
            axes.plot(list(lowest), list(lowest.values()), color=colour, linestyle=dash, linewidth=1.4)
            _errors(axes, mine, dash, colour, marker, name)
        axes.set_xlabel("sparsity of the pruned tensors, %")
        _perplexity_axis(axes, [point.perplexity for point in points])
        _legend(figure, axes)
    return figure


def pareto_front(points: Sequence[SparsityPoint], title: str = "Sparsity against perplexity") -> Figure:
    """All configurations, and the front of those that no other beats in both sparsity and perplexity.

    Raises:
        ReportError: no points.
    """
    _need(points, "measured trials")
    front = pareto(points)
    with _drawing(title) as (figure, axes):
        for name, (colour, marker, _) in _looks(point.method for point in points).items():
            mine = [point for point in points if point.method == name]
            axes.plot(
                [point.sparsity for point in mine],
                [point.perplexity for point in mine],
                linestyle="none",
                marker=marker,
                color=colour,
                label=name,
            )
        axes.step(
            [point.sparsity for point in front],
            [point.perplexity for point in front],
            where="pre",  # up to a point's sparsity, its perplexity can be had
            color=_GREY,
            linewidth=1.2,
            label="front",
            zorder=1,
        )
        for point in front:
            axes.annotate(
                point.label,
                (point.sparsity, point.perplexity),
                xytext=(-5, 5),
                textcoords="offset points",
                ha="right",
                fontsize=7,
            )
        axes.margins(x=0.12, y=0.1)
        axes.set_xlabel("sparsity of the pruned tensors, %")
        _perplexity_axis(axes, [point.perplexity for point in points])
        _legend(figure, axes)
    return figure


def layer_sensitivity(
    bars: Sequence[LayerBar], title: str = "One layer pruned at a time", *, dense: float | None = None
) -> Figure:
    """Perplexity when one decoder block is pruned, by block, with its interval.

    Bars start at the dense model's perplexity, so that their length is the damage done; without it, at the least one.

    Raises:
        ReportError: no bars.
    """
    _need(bars, "trials that pruned a single layer")
    with _drawing(title) as (figure, axes):
        base = dense if dense is not None else min(bar.perplexity for bar in bars)
        for bar in bars:
            axes.plot(
                [bar.layer, bar.layer], [base, bar.perplexity], color=OKABE_ITO[5], linewidth=8, solid_capstyle="butt"
            )
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.layer, bar.layer], [bar.low, bar.high], color=_GREY, linewidth=1)
        axes.plot(
            [bar.layer for bar in bars],
            [bar.perplexity for bar in bars],
            linestyle="none",
            marker="o",
            color=OKABE_ITO[0],
            label="this layer pruned",
        )
        if dense is not None:
            axes.axhline(dense, color=OKABE_ITO[1], linestyle="--", linewidth=1.2, label="dense")
        axes.set_xlabel("decoder block")
        _perplexity_axis(axes, [base, *(bar.perplexity for bar in bars)])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)
        _legend(figure, axes)
    return figure


def training_curves(
    perplexity: Sequence[Curve], sparsity: Sequence[Curve] = (), title: str = "Perplexity and sparsity in training"
) -> Figure:
    """Perplexity over optimizer steps, and below it on the same steps the sparsity in percent.

    Raises:
        ReportError: no curve has a point.
    """
    _need([curve for curve in (*perplexity, *sparsity) if curve.steps], "curve points")
    with _drawing(title, height=4.0 if not sparsity else 5.0) as (figure, above):
        axes = [above]
        if sparsity:
            figure.delaxes(above)
            axes = list(figure.subplots(2, 1, sharex=True, height_ratios=(2, 1)))
            axes[0].set_title(title, loc="left", fontweight="bold")
            axes[1].set_ylabel("sparsity, %")
            axes[1].set_ylim(-3, 103)
        looks = _looks(curve.label for curve in (*perplexity, *sparsity))
        for target, curves in zip(axes, (perplexity, sparsity), strict=False):
            for curve in curves:
                colour, marker, dash = looks[curve.label]
                few = len(curve.steps) <= 30
                target.plot(
                    curve.steps,
                    curve.values,
                    color=colour,
                    linestyle=dash,
                    linewidth=1.4,
                    marker=marker if few else None,
                    markersize=4,
                    label=curve.label,
                )
        axes[-1].set_xlabel("optimizer steps")
        _perplexity_axis(axes[0], [value for curve in perplexity for value in curve.values])
        _legend(figure, axes[0] if perplexity else axes[-1])
    return figure


def sparsity_heat_map(data: HeatMap, title: str = "Sparsity by layer, %") -> Figure:
    """Share of zeros by decoder block and tensor.

    Raises:
        ReportError: no tensors.
    """
    _need(data.rows, "tensors selected for pruning")
    height = min(12.0, 1.6 + 0.28 * len(data.rows))
    with _drawing(title, width=min(12.0, 2.4 + 0.9 * len(data.columns)), height=height) as (figure, axes):
        values = [[math.nan if value is None else value for value in row] for row in data.values]
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")  # even for the colour-blind
        axes.set_xticks(range(len(data.columns)), data.columns, rotation=30, ha="right")
        axes.set_yticks(range(len(data.rows)), data.rows)
        axes.set_ylabel("decoder block")
        axes.grid(visible=False)
        if len(data.rows) * len(data.columns) <= _NUMBERS_UP_TO:
            for (i, row), (j, _) in itertools.product(enumerate(values), enumerate(data.columns)):
                if not math.isnan(row[j]):
                    ink = "white" if row[j] < 50 else "black"
                    axes.text(j, i, f"{row[j]:.0f}", ha="center", va="center", color=ink, fontsize=7)
        figure.colorbar(image, ax=axes)
    return figure


def _need(data: Sequence[object], what: str) -> None:
    if not data:
        raise ReportError(f"a figure needs {what}, but there are none. Run more of the sweep first.")


def _looks(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and dash of each line of a figure; colours come round again with another dash."""
    looks = {}
    distinct = dict.fromkeys(names)
    if DENSE in distinct:
        looks[DENSE] = (_GREY, "*", "none")
    for index, name in enumerate(name for name in distinct if name != DENSE):
        turn, position = divmod(index, len(OKABE_ITO))
        looks[name] = OKABE_ITO[position], _MARKERS[(position + turn) % len(_MARKERS)], _DASHES[turn % len(_DASHES)]
    return looks


def _errors(axes: Axes, points: Sequence[SparsityPoint], dash: str, colour: str, marker: str, label: str) -> None:
    for point in points:
        if point.low is not None and point.high is not None:
            axes.plot(
                [point.sparsity] * 2, [point.low, point.high], color=colour, linewidth=1, marker="_", markersize=5
            )
    axes.plot(
        [point.sparsity for point in points],
        [point.perplexity for point in points],
        color=colour,
        marker=marker,
        linestyle="none",
        markersize=9 if marker == "*" else 5,
    )
    axes.plot([], [], color=colour, marker=marker, linestyle=dash, label=label)  # the legend's line


def _perplexity_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_ylabel("perplexity")
    positive = [value for value in values if value > 0]
    if positive and max(positive) / min(positive) >= _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


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


def html(figure: Figure, title: str) -> str:
    """A page with the figure in it; it needs nothing beside itself."""
    return page(title, f"<figure>{svg(figure)}</figure>\n")


def save(figure: Figure, path: Path, title: str = "") -> None:
    """Writes a figure in the format of the suffix: .png, .svg or .html.

    Raises:
        ReportError: another suffix.
    """
    makers = {
        ".png": lambda: png(figure),
        ".svg": lambda: f'<?xml version="1.0" encoding="utf-8"?>\n{svg(figure)}'.encode(),
        ".html": lambda: html(figure, title or path.stem).encode(),
    }
    if path.suffix not in makers:
        raise ReportError(unknown("figure format", path.suffix, makers))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(makers[path.suffix]())
