"""The figures that a sweep has data for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from prunegpt.records import Point, TrialResult, comparable
from prunegpt.report.figure_data import (
    Curve,
    curve,
    dense_perplexity,
    heat_map,
    layer_bars,
    sparsity_points,
    whole_models,
)
from prunegpt.report.figures import draw, sparsity_heat_map
from prunegpt.report.measure import WindowsOf
from prunegpt.report.plots import by_layer, front, over_sparsity, training

_FEW = 2  # sparsities, or layers, that make a figure worth looking at
_MOST_CURVES = 16


@dataclass(frozen=True)
class NamedFigure:
    """A figure with the name of its files and what it shows in words."""

    name: str
    caption: str
    figure: Figure


def figures_of(
    results: Sequence[TrialResult], windows: WindowsOf, points: Mapping[str, Sequence[Point]] | None = None
) -> tuple[NamedFigure, ...]:
    """Every figure these trials have data for, in a fixed order.

    Args:
        results: trials; those measured as most of them are, are drawn.
        windows: gives per-window losses, or None.
        points: trial name -> its curve points.
    """
    shown = comparable(results)
    found: list[NamedFigure] = []
    bars = layer_bars(shown, windows)
    at = sparsity_points(shown, windows)
    whole = whole_models(at, shown)
    if len({round(point.sparsity, 1) for point in whole}) >= _FEW:
        caption = "Perplexity over the sparsity that was measured, a line a method, with intervals"
        found.append(NamedFigure("perplexity-over-sparsity", caption, draw(over_sparsity(whole))))
        caption = "Sparsity against perplexity, and the front that no configuration beats in both"
        found.append(NamedFigure("pareto", caption, draw(front(whole))))
    if len({bar.layer for bar in bars}) >= _FEW:
        dense = dense_perplexity(at)
        caption = "Perplexity when one decoder block is pruned"
        found.append(NamedFigure("layers", caption, draw(by_layer(bars, dense=dense))))
    names = {trial.name for trial in shown}
    points = {name: mine for name, mine in (points or {}).items() if name in names}
    perplexity = _curves(points, "perplexity", 1.0)
    if perplexity:
        sparsity = _curves(points, "sparsity", 100.0)
        caption = "Perplexity and sparsity over optimizer steps"
        found.append(NamedFigure("training", caption, draw(training(perplexity, sparsity))))
    for trial in shown:
        if trial.measured and trial.sparsity is not None and len(set(trial.sparsity.by_tensor.values())) > 1:
            drawn = sparsity_heat_map(heat_map(trial.sparsity.by_tensor), f"{trial.name}: sparsity by layer, %")
            caption = f"Share of zeros of every pruned tensor of {trial.name}, percent"
            found.append(NamedFigure(f"sparsity-{trial.name}", caption, drawn))
    return tuple(found)


def _curves(points: Mapping[str, Sequence[Point]], name: str, scale: float) -> tuple[Curve, ...]:
    drawn = [curve(mine, name, trial, scale=scale) for trial, mine in points.items()]
    return tuple(found for found in drawn if len(found.steps) > 1)[:_MOST_CURVES]
