"""Figures of measured trials, and what they are made from; see `report.plot`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prunegpt.records import TrialResult
from prunegpt.report.columns import layer
from prunegpt.report.measure import WindowsOf
from prunegpt.report.plot import (
    GREY,
    OKABE_ITO,
    Plot,
    escaped,
    hover,
    layout_of,
    leading,
    looks,
    need,
    trace_of,
)
from prunegpt.report.quality import intervals, leads, measured_groups, perplexity_axis
from prunegpt.spec.names import by_parameter

if TYPE_CHECKING:
    from prunegpt.store.series import Series


CURVES = {"perplexity": 1.0, "sparsity": 100.0}  # that figures show of a training -> scale of their values

_POINTS = 500  # of a curve
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.(.+)$")


_NUMBERS_UP_TO = 200  # cells of a heat map that have their number in them
_MOST_NUMBERS_ACROSS = 24


@dataclass(frozen=True)
class LayerBar:
    """What pruning one decoder layer did."""

    layer: int
    perplexity: float
    low: float | None = None
    high: float | None = None
    trials: tuple[str, ...] = ()
    swept: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """Values over training; steps count on through the stages of a chain."""

    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    trials: tuple[str, ...] = ()
    swept: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HeatMap:
    """Shares of zeros, percent, by block and tensor; None where a block has no such tensor."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def layer_bars(results: Sequence[TrialResult], windows: WindowsOf) -> tuple[LayerBar, ...]:
    """A bar for every configuration that pruned exactly one decoder layer, by block."""
    single = {trial.group for trial in results if isinstance(layer(trial), int)}
    measured = measured_groups([trial for trial in results if trial.group in single], windows)
    places = [(layer(group[0]), height, leads(group)) for group, height in measured]
    bars = [LayerBar(index, *height, *leads) for index, height, leads in places if isinstance(index, int)]
    return tuple(sorted(bars, key=lambda bar: (bar.layer, bar.perplexity)))


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
        made[name] = Curve(trial.name, tuple(steps[kept].tolist()), tuple(values[kept].tolist()), *leads([trial]))
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


def by_layer(
    bars: Sequence[LayerBar], title: str = "One layer pruned at a time", *, dense: float | None = None
) -> Plot:
    """Perplexity when one decoder layer is pruned; bars start at the dense model's."""
    need(bars, "trials that pruned a single layer")
    base = dense if dense is not None else min(bar.perplexity for bar in bars)
    layers = [bar.layer for bar in bars]
    texts = [
        hover(f"layer {bar.layer}", f"perplexity {bar.perplexity:.4g}", *bar.trials, swept=bar.swept) for bar in bars
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": "this layer pruned",
            "x": layers,
            "y": [bar.perplexity - base for bar in bars],
            "base": base,
            "marker": {"color": OKABE_ITO[0]},
            **leading([bar.trials for bar in bars], texts),
            "error_y": intervals(bars, GREY, 3),
        }
    ]
    if dense is not None:
        line = {"color": OKABE_ITO[1], "dash": "dash", "width": 2}
        ends = [min(layers) - 0.5, max(layers) + 0.5]
        data.append(trace_of(ends, [dense, dense], "dense", mode="lines", line=line) | {"hoverinfo": "skip"})
    across = {"title": {"text": "decoder layer"}, "dtick": 1 if len(set(layers)) <= 40 else None, "showgrid": False}
    return Plot(data=data, layout=layout_of(title, across, perplexity_axis([base, *(bar.perplexity for bar in bars)])))


def training(
    perplexity: Sequence[Curve], sparsity: Sequence[Curve] = (), title: str = "Perplexity and sparsity in training"
) -> Plot:
    """Perplexity over optimizer steps, and below it on the same steps the sparsity in percent."""
    need([curve for curve in (*perplexity, *sparsity) if curve.steps], "curve points")
    styles = looks(curve.label for curve in (*perplexity, *sparsity))
    data = []
    named: set[str] = set()
    for axis, curves in (("y", perplexity), ("y2", sparsity)):
        for curve in curves:
            colour, symbol, dash = styles[curve.label]
            trace = curve_trace(curve, {"color": colour, "dash": dash, "width": 2})
            trace |= {"yaxis": axis, "legendgroup": curve.label, "showlegend": curve.label not in named}
            data.append(trace | {"marker": {"symbol": symbol, "color": colour, "size": 6}})
            named.add(curve.label)
    above = perplexity_axis(value for curve in perplexity for value in curve.values)
    layout = layout_of(title, {"title": {"text": "optimizer steps"}}, above)
    if sparsity:
        layout["yaxis"]["domain"] = [0.38, 1.0]
        layout["yaxis2"] = {"domain": [0.0, 0.3], "title": {"text": "sparsity, %"}, "range": [-3, 103], "anchor": "x"}
        layout["xaxis"]["anchor"] = "y2"
    return Plot(data=data, layout=layout)


def curve_trace(curve: Curve, line: Mapping[str, Any]) -> dict[str, Any]:
    """One curve as a line that leads to its trial."""
    mode = "lines+markers" if len(curve.steps) <= 30 else "lines"
    told = hover(curve.label, swept=curve.swept).replace("%{", "%\u200b{")  # a name must stay a name
    return trace_of(list(curve.steps), list(curve.values), curve.label, mode=mode, line=dict(line)) | {
        "meta": {"trials": list(curve.trials)},
        "hovertemplate": f"step %{{x}}: %{{y:.4g}}<extra>{told}</extra>",
    }


def by_block(data: HeatMap, title: str = "Sparsity by layer, %") -> Plot:
    """Shares of zeros by tensor (down) and decoder layer (across), on the scale of 0 to 100 percent."""
    need(data.rows, "tensors selected for pruning")
    shares = [list(column) for column in zip(*data.values, strict=True)]  # [tensors, layers]
    return heat_plot(
        shares, data.rows, data.columns, title, {"title": {"text": "decoder layer"}, "type": "category"}, "layer"
    )


def heat_plot(
    shares: Sequence[Sequence[float | None]],
    across: Sequence[Any],
    down: Sequence[str],
    title: str,
    axis: Mapping[str, Any],
    what: str,
) -> Plot:
    """Percentages, None where there is none, from 0 to 100 however far apart they are; few enough have their number.

    Args:
        shares: [down, across].
        axis: layout of the axis that goes across.
        what: one place on it is called.
    """
    said = len(across) * len(down) <= _NUMBERS_UP_TO and len(across) <= _MOST_NUMBERS_ACROSS
    trace = {
        "type": "heatmap", "x": list(across), "y": [escaped(name) for name in down], "z": [list(row) for row in shares],
        "zmin": 0, "zmax": 100, "colorscale": "Cividis", "xgap": 1, "ygap": 1, "hoverongaps": False, "meta": "summary",
        "hovertemplate": f"{what}: %{{x}}, %{{y}}<br>%{{z:.2f}}%<extra></extra>",
        "colorbar": {"title": {"text": "%", "side": "top"}, "thickness": 12, "outlinewidth": 0, "len": 0.95},
        **({"texttemplate": "%{z:.1f}"} if said else {}),
    }  # fmt: skip
    return Plot(
        data=[trace],
        layout=layout_of(
            title, axis, {"title": {"text": ""}, "autorange": "reversed", "type": "category", "nticks": 40}
        ),
    )
