"""Panels of any metric: curves of several trials, smoothed, and one field of trials over another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegpt.records import TrialResult
from prunegpt.report.field import TrialField
from prunegpt.report.format import is_number
from prunegpt.report.plot import Plot, escaped, hover, layout_of, leading, looks, need, said, trace_of

_VIEWPORT = 1000.0  # to which the range of x is scaled before a weight is taken to the power of a distance on it
_HEAVIEST = 0.999
_MOST_NAMED = 16  # curves up to which a legend says which is which


@dataclass(frozen=True)
class MetricCurve:
    """A metric of one trial, over what the panel has across; None where a value is not finite."""

    trial: TrialResult
    trials: list[str] = field(default_factory=list)  # addresses: its own, and those that share all of its stages
    x: list[float] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)
    smooth: list[float | None] = field(default_factory=list)


def smoothed(x: NDArray[np.float64], y: NDArray[np.float64], smoothing: float) -> NDArray[np.float64]:
    """The time-weighted exponential moving average of Weights & Biases ("Smooth line plots", the default algorithm).

    A value weighs less the farther it is on the axis, whose range counts as 1000, and the first ones are not drawn
    towards zero. What is not finite is passed over and stays so.

    Args:
        x: [points], growing.
        y: [points].
        smoothing: 0 (none) to 1; the weight is its root.
    """
    weight = min(math.sqrt(smoothing), _HEAVIEST)
    width = float(np.ptp(x)) if len(x) else 0.0
    found = np.full(len(y), np.nan)
    last = bias = 0.0
    before: float | None = None
    for place, (across, value) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        if not math.isfinite(value):
            continue
        moved = 0.0 if before is None or not width else (across - before) / width * _VIEWPORT
        kept = weight**moved if weight else 0.0
        last, bias = (last * kept + value, bias * kept + 1) if before is not None else (value, 1.0)
        found[place], before = last / bias, across
    return found


def metric_curves(
    curves: Sequence[MetricCurve], *, x: str, y: str, x_log: bool = False, y_log: bool = False, caption: str = ""
) -> Plot:
    """A line per trial; where it is smoothed, the values themselves are faint behind it."""
    need([curve for curve in curves if curve.x], f"trials with points of {y} over {x}")
    data: list[dict[str, Any]] = []
    styles = looks(curve.trial.name for curve in curves)
    for curve in curves:
        colour, symbol, dash = styles[curve.trial.name]
        line = {"color": colour, "dash": dash, "width": 1.75}
        mark = {"marker": {"color": colour, "symbol": symbol, "size": 5}}
        mode = "lines+markers" if len(curve.x) < 40 else "lines"
        label = curve.trial.label if curve.trial.plan.foreign else curve.trial.name
        more = [f"and {len(curve.trials) - 1} that share these stages"] if len(curve.trials) > 1 else []
        told = hover(label, *more, swept=curve.trial.swept).replace("%{", "%\u200b{")
        leads = {
            "meta": {"trials": curve.trials},
            "hovertemplate": f"{escaped(y)} %{{y:.5~g}}<extra>{told}</extra>",
            "legendgroup": curve.trial.name,
        }
        if any(value is not None for value in curve.smooth):
            faint = trace_of(curve.x, curve.y, label, mode="lines", line={**line, "width": 1}, opacity=0.25)
            data.append(faint | {"hoverinfo": "skip", "showlegend": False, "legendgroup": curve.trial.name})
            data.append(trace_of(curve.x, curve.smooth, label, mode="lines", line=line) | leads)
        else:
            data.append(trace_of(curve.x, curve.y, label, mode=mode, line=line) | mark | leads)
    layout = _axes(f"{y} over {x}", x, y, x_log, y_log)
    return Plot(data=data, layout={**layout, "showlegend": 1 < len(curves) <= _MOST_NAMED}, caption=caption)


def scatter(
    trials: Sequence[TrialResult],
    x: TrialField,
    y: TrialField,
    color: TrialField | None = None,
    *,
    x_log: bool = False,
    y_log: bool = False,
) -> Plot:
    """A point per trial that has both fields, coloured by a third: by a scale where it is a number, else by value."""
    values = [(trial, x.of(trial), y.of(trial)) for trial in trials]
    found = [(trial, float(a), float(b)) for trial, a, b in values if is_number(a) and is_number(b)]
    need(found, f"trials with both {x.name} and {y.name}")
    groups: dict[str, list[tuple[TrialResult, float, float]]] = {"trials": found}
    shades: dict[str, Any] = {}
    if color is not None and color.numeric:
        found = [one for one in found if is_number(color.of(one[0]))]
        need(found, f"trials with {x.name}, {y.name} and {color.name}")
        groups = {"trials": found}
        bar = {"title": {"text": escaped(color.label), "side": "right"}, "thickness": 12, "outlinewidth": 0}
        shades = {"color": [float(color.of(one[0])) for one in found], "colorscale": "Cividis", "colorbar": bar}
    elif color is not None:
        groups = {}
        for one in found:
            value = color.of(one[0])
            groups.setdefault(f"no {color.name}" if value is None else said(value), []).append(one)
    data = []
    for name, (colour, symbol, _) in looks(groups).items():
        mine = groups[name]
        points = trace_of([a for _, a, _ in mine], [b for _, _, b in mine], name, mode="markers")
        points |= {"marker": {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.8, **shades}}
        third = [f", {color.name} {said(color.of(trial))}" if color else "" for trial, _, _ in mine]
        texts = [
            hover(trial.name, f"{x.name} {a:.4g}, {y.name} {b:.4g}{more}", swept=trial.swept)
            for (trial, a, b), more in zip(mine, third, strict=True)
        ]
        data.append(points | leading([[one[0].address] for one in mine], texts))
    layout = _axes(f"{y.name} over {x.name}", x.label, y.label, x_log, y_log)
    return Plot(data=data, layout={**layout, "showlegend": len(groups) > 1})


def _axes(title: str, x: str, y: str, x_log: bool, y_log: bool) -> dict[str, Any]:
    across, upwards = (
        {"title": {"text": escaped(name)}, **({"type": "log"} if log else {})} for name, log in ((x, x_log), (y, y_log))
    )
    return layout_of(title, across, upwards)
