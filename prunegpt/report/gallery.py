"""The figures that a sweep has data for: one list of them, for pages and for paper."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from prunegpt.errors import ReportError, unknown
from prunegpt.records import TrialResult, comparable
from prunegpt.report.measure import WindowsOf
from prunegpt.report.plots import (
    Curve,
    LayerBar,
    Plot,
    SparsityPoint,
    by_layer,
    dense_perplexity,
    front,
    heat_map,
    layer_bars,
    over_sparsity,
    sparsity_points,
    training,
    whole_models,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes a quarter of a second, which pages do without

CurvesOf = Callable[[TrialResult], Mapping[str, Curve]]  # `plots.curves` of what a store has

_FEW = 2  # sparsities, or layers, that make a figure worth a place in a report
_MOST_CURVES = 16
_MOST_INTERVALS = 200  # configurations up to which intervals are drawn: more would take minutes, and hide all
_TRAIN = ("finetune", "distill", "pretrain")  # kinds of stages whose curves have a length


class Material:
    """What the figures of some trials are drawn from: those measured as most of them are."""

    def __init__(self, results: Sequence[TrialResult], windows: WindowsOf, curves: CurvesOf) -> None:
        self.trials = comparable(results)
        many = len({trial.group for trial in self.trials}) > _MOST_INTERVALS
        self._windows: WindowsOf = (lambda trial: None) if many else windows
        self._curves_of = curves

    @cached_property
    def whole(self) -> Sequence[SparsityPoint]:
        return whole_models(sparsity_points(self.trials, self._windows), self.trials)

    @cached_property
    def bars(self) -> Sequence[LayerBar]:
        return layer_bars(self.trials, self._windows)

    @property
    def dense(self) -> float | None:
        return dense_perplexity(sparsity_points(self.trials, lambda trial: None))

    @cached_property
    def curves(self) -> Sequence[Mapping[str, Curve]]:
        """Of trials that trained, those of a shared chain once; what runs now comes first."""
        found: list[Mapping[str, Curve]] = []
        seen: set[tuple[str, ...]] = set()
        for trial in sorted(self.trials, key=lambda trial: (trial.state != "running", not trial.stages)):
            trained = tuple(stage.key for stage in trial.plan.stages if stage.kind in _TRAIN)
            if trial.state == "waiting" or trained in seen or len(found) == _MOST_CURVES:
                continue
            made = self._curves_of(trial)
            if "perplexity" in made and len(made["perplexity"].steps) > 1:
                seen.add(trained)
                found.append(made)
        return found

    @property
    def heat_maps(self) -> list[TrialResult]:
        """Trials whose tensors have different shares of zeros."""
        counted = [trial for trial in self.trials if trial.measured and trial.sparsity is not None]
        return [trial for trial in counted if trial.sparsity and len(set(trial.sparsity.by_tensor.values())) > 1]


def _training(material: Material) -> Plot:
    shown = material.curves
    sparsity = [one["sparsity"] for one in shown if "sparsity" in one and len(one["sparsity"].steps) > 1]
    return training([one["perplexity"] for one in shown], sparsity)


@dataclass(frozen=True)
class Drawing:
    """A figure that any sweep may have."""

    title: str
    file: str  # its name in a report
    caption: str
    plot: Callable[[Material], Plot]  # raises ReportError where there is nothing to draw
    is_worth: Callable[[Material], bool] = lambda material: True  # a place in a report


def _several(material: Material) -> bool:
    return len({round(point.sparsity, 1) for point in material.whole}) >= _FEW


DRAWINGS: Mapping[str, Drawing] = {
    "sparsity": Drawing(
        "Perplexity over sparsity",
        "perplexity-over-sparsity",
        "Perplexity over the sparsity that was measured, one line per method, with intervals",
        lambda material: over_sparsity(material.whole),
        _several,
    ),
    "pareto": Drawing(
        "Sparsity against perplexity",
        "pareto",
        "Sparsity against perplexity, and the front that no configuration beats in both",
        lambda material: front(material.whole),
        _several,
    ),
    "layers": Drawing(
        "One layer pruned at a time",
        "layers",
        "Perplexity when one decoder layer is pruned",
        lambda material: by_layer(material.bars, dense=material.dense),
        lambda material: len({bar.layer for bar in material.bars}) >= _FEW,
    ),
    "training": Drawing(
        "Perplexity and sparsity in training",
        "training",
        "Perplexity and sparsity over optimizer steps",
        _training,
    ),
}


@dataclass(frozen=True)
class NamedFigure:
    """A figure with the name of its files and what it shows in words. A notebook shows it."""

    name: str
    caption: str
    figure: "Figure"

    def save(self, path: str | Path) -> None:
        """Writes it in the format of the suffix: .pdf, .png or .svg.

        Raises:
            ReportError: another suffix.
        """
        from prunegpt.report.figures import save

        save(self.figure, Path(path))

    def __repr__(self) -> str:
        return f"<figure {self.name}: {self.caption}>"

    def _repr_png_(self) -> bytes:
        from prunegpt.report.figures import png

        return png(self.figure)


_HEAT_MAP = "sparsity-"  # and the name of a trial


def figure_names(material: Material) -> list[str]:
    """What `figure_of` can be asked for."""
    return [*DRAWINGS, *(f"{_HEAT_MAP}{trial.name}" for trial in material.heat_maps)]


def figure_of(name: str, material: Material, names: Sequence[str] = ()) -> NamedFigure:
    """The figure of that name.

    Args:
        names: that a message lists where there is none; default those of `figure_names`.

    Raises:
        ReportError: there is none (the nearest names are listed), or nothing yet to draw it from.
    """
    from prunegpt.report.figures import draw, sparsity_heat_map

    if name in DRAWINGS:
        drawing = DRAWINGS[name]
        return NamedFigure(drawing.file, drawing.caption, draw(drawing.plot(material)))
    trial = next((one for one in material.heat_maps if f"{_HEAT_MAP}{one.name}" == name), None)
    if trial is None or trial.sparsity is None:
        raise ReportError(unknown("figure", name, names or figure_names(material)))
    drawn = sparsity_heat_map(heat_map(trial.sparsity.by_tensor), f"{trial.name}: sparsity by layer, %")
    return NamedFigure(name, f"Share of zeros of every pruned tensor of {trial.name}, percent", drawn)


def figures_of(
    results: Sequence[TrialResult], windows: WindowsOf, curves: CurvesOf = lambda trial: {}
) -> tuple[NamedFigure, ...]:
    """Every figure these trials have data for, in a fixed order; see `Material` for the arguments."""
    material = Material(results, windows, curves)
    found: list[NamedFigure] = []
    for name in figure_names(material):
        try:
            if name not in DRAWINGS or DRAWINGS[name].is_worth(material):
                found.append(figure_of(name, material))
        except ReportError:  # it says what is missing, which a page shows and a report leaves out
            continue
    return tuple(found)
