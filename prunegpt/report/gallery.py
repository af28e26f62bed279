"""The figures that a sweep has data for: one list of them, for pages and for paper."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegpt.errors import ReportError, UnknownPartError, unknown
from prunegpt.records import EARLY_STOP, TrialResult, comparable
from prunegpt.report import search_plots
from prunegpt.report.measure import WindowsOf
from prunegpt.report.plot import Plot, need
from prunegpt.report.plots import (
    Curve,
    LayerBar,
    SparsityPoint,
    by_block,
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
from prunegpt.report.searched import Searched, important, searches

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes a quarter of a second, which pages do without

CurvesOf = Callable[[TrialResult], Mapping[str, Curve]]  # `plots.curves` of what a store has

_FEW = 2  # sparsities, or layers, that make a figure worth a place in a report
_MOST_CURVES = 16
_MOST_INTERMEDIATE = 100  # trials whose curves are asked for
_MOST_INTERVALS = 200  # configurations up to which intervals are drawn: more would take minutes, and hide all
_TRAIN = ("finetune", "distill", "pretrain")  # kinds of stages whose curves have a length


@dataclass(frozen=True)
class FigureChoice:
    """Which figure is drawn of those that a drawing makes; what is empty is the first one that there is."""

    search: str = ""
    objective: str = ""
    x: str = ""
    y: str = ""


class Material:
    """What the figures of some trials are drawn from: those measured as most of them are.

    Args:
        results: the trials.
        windows: gives the per-window losses of one.
        curves: gives the curves of one.
        spec: of the sweep as it is stored, which declares its searches.
    """

    def __init__(
        self,
        results: Sequence[TrialResult],
        windows: WindowsOf,
        curves: CurvesOf,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        self.trials = comparable([trial for trial in results if not trial.implicit])
        self._spec = spec or {}
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

    @cached_property
    def searches(self) -> Sequence[Searched]:
        return searches(self.trials, self._spec)

    def searched(self, choice: FigureChoice) -> Searched:
        """The search that is chosen. Raises ReportError where there is none."""
        need(self.searches, "trials with searched values")
        return next(one for one in self.searches if one.label == _chosen("search", choice.search, _labels(self)))

    def values(self, drawing: "Drawing", choice: FigureChoice) -> dict[str, list[str]]:
        """What may be chosen of a drawing: field of `FigureChoice` -> its values, the first the default."""
        if not drawing.takes or not self.searches:
            return {}
        searched = self.searched(choice)
        axes = searched.paths
        if drawing.of_objectives:
            axes = list(searched.objectives) if len(searched.objectives) > 1 else []
        every = {"search": _labels(self), "objective": list(searched.objectives), "x": axes, "y": axes[1:] + axes[:1]}
        return {name: every[name] for name in drawing.takes}

    def intermediate(self, searched: Searched) -> list[tuple[TrialResult, Curve]]:
        """The trials of a search that were measured while they trained, with their perplexity."""
        found = []
        for trial in sorted(searched.trials, key=lambda trial: trial.reason != EARLY_STOP)[:_MOST_INTERMEDIATE]:
            curve = self._curves_of(trial).get("perplexity") if trial.state != "waiting" else None
            if curve is not None and len(curve.steps) > 1:
                found.append((trial, curve))
        return found

    @property
    def heat_maps(self) -> list[TrialResult]:
        """Trials whose tensors have different shares of zeros."""
        counted = [trial for trial in self.trials if trial.measured and trial.sparsity is not None]
        return [trial for trial in counted if trial.sparsity and len(set(trial.sparsity.by_tensor.values())) > 1]


def _labels(material: Material) -> list[str]:
    return [one.label for one in material.searches]


def _chosen(what: str, name: str, valid: Sequence[str]) -> str:
    """What is named, or the first. Raises UnknownPartError where there is no such."""
    if name and name not in valid:
        raise UnknownPartError(unknown(what, name, valid))
    return name or valid[0]


def _training(material: Material, _: FigureChoice) -> Plot:
    shown = material.curves
    sparsity = [one["sparsity"] for one in shown if "sparsity" in one and len(one["sparsity"].steps) > 1]
    return training([one["perplexity"] for one in shown], sparsity)


@dataclass(frozen=True)
class Drawing:
    """A figure that any sweep may have.

    Attributes:
        file: its name in a report.
        plot: makes it of what is chosen; raises ReportError where there is nothing to draw.
        is_worth: whether it has a place in a report.
        takes: the fields of `FigureChoice` that it heeds; a report has it for every search and every objective.
        of_objectives: x and y are objectives; else they are searched values.
        check: of a drawing that is costly to make: raises what `plot` would.
    """

    title: str
    file: str
    caption: str
    plot: Callable[[Material, FigureChoice], Plot]
    is_worth: Callable[[Material], bool] = lambda material: True
    takes: tuple[str, ...] = ()
    of_objectives: bool = False
    check: Callable[[Material], None] | None = None

    def missing(self, material: Material) -> str | None:
        """Why there is nothing to draw; None where there is."""
        try:
            _ = self.check(material) if self.check else self.made(material)
        except ReportError as error:
            return str(error)
        return None

    def made(self, material: Material, choice: FigureChoice = FigureChoice()) -> Plot:  # frozen
        """The figure, with its defaults in place of what is not chosen.

        Raises:
            ReportError: there is nothing to draw.
            UnknownPartError: no such search, objective or searched value.
        """
        values = material.values(self, choice)
        for field, valid in values.items():
            need(valid, "a search with two objectives" if self.of_objectives else "trials whose searched values differ")
            choice = replace(choice, **{field: _chosen(field, getattr(choice, field), valid)})
        return self.plot(material, choice)

    def choices(self, material: Material) -> Iterator[FigureChoice]:
        """Those that a report has: every objective of every search."""
        for search in _labels(material) if "search" in self.takes else ("",):
            objectives = material.values(self, FigureChoice(search)).get("objective", ("",))
            yield from (FigureChoice(search, objective) for objective in objectives)


def _searching(plot: Callable[..., Plot], *fields: str) -> Callable[[Material, FigureChoice], Plot]:
    """Draws the chosen search with these fields of the choice."""
    return lambda material, choice: plot(material.searched(choice), *(getattr(choice, field) for field in fields))


def _intermediate(material: Material, choice: FigureChoice) -> Plot:
    searched = material.searched(choice)
    return search_plots.intermediate(searched, material.intermediate(searched))


def _check_importance(material: Material) -> None:
    searched = material.searched(FigureChoice())
    reasons = []
    for objective in searched.objectives:
        try:
            important(searched, objective)
        except ReportError as error:
            reasons.append(error)
    if len(reasons) == len(searched.objectives):
        raise reasons[0]


def _several(material: Material) -> bool:
    return len({round(point.sparsity, 1) for point in material.whole}) >= _FEW


DRAWINGS: Mapping[str, Drawing] = {
    "sparsity": Drawing(
        "Perplexity over sparsity",
        "perplexity-over-sparsity",
        "Perplexity over the sparsity that was measured, with intervals; a line joins what differs in sparsity alone",
        lambda material, _: over_sparsity(material.whole),
        _several,
    ),
    "pareto": Drawing(
        "Sparsity against perplexity",
        "pareto",
        "Sparsity against perplexity, and the front that no configuration beats in both",
        lambda material, _: front(material.whole),
        _several,
    ),
    "layers": Drawing(
        "One layer pruned at a time",
        "layers",
        "Perplexity when one decoder layer is pruned",
        lambda material, _: by_layer(material.bars, dense=material.dense),
        lambda material: len({bar.layer for bar in material.bars}) >= _FEW,
    ),
    "training": Drawing(
        "Perplexity and sparsity in training",
        "training",
        "Perplexity and sparsity over optimizer steps",
        _training,
    ),
    "history": Drawing(
        "History of the search",
        "history",
        "The objective of every trial in the order of the search, and the best so far",
        _searching(search_plots.history, "objective"),
        takes=("search", "objective"),
    ),
    "objectives": Drawing(
        "Two objectives",
        "objectives",
        "Two objectives against each other, and the front that no trial beats in both",
        _searching(search_plots.objectives, "x", "y"),
        takes=("search", "x", "y"),
        of_objectives=True,
    ),
    "parallel": Drawing(
        "Searched values and objective",
        "parallel",
        "One line per trial over its searched values to its objective, the better the darker",
        _searching(search_plots.parallel, "objective"),
        takes=("search", "objective"),
    ),
    "importance": Drawing(
        "What the objectives depend on",
        "importance",
        "The share of each searched value in what makes the best trials (PED-ANOVA)",
        _searching(search_plots.importance),
        takes=("search",),
        check=_check_importance,
    ),
    "slice": Drawing(
        "Objective over each searched value",
        "slice",
        "The objective over each searched value",
        _searching(search_plots.slices, "objective"),
        takes=("search", "objective"),
    ),
    "contour": Drawing(
        "Objective over two searched values",
        "contour",
        "The objective over two searched values, interpolated between the trials",
        _searching(search_plots.contour, "objective", "x", "y"),
        takes=("search", "objective", "x", "y"),
    ),
    "intermediate": Drawing(
        "Intermediate values",
        "intermediate",
        "Perplexity while trials trained; those that were stopped early are dashed",
        _intermediate,
        takes=("search",),
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
    from prunegpt.report.figures import draw

    if name in DRAWINGS:
        drawing = DRAWINGS[name]
        return NamedFigure(drawing.file, drawing.caption, draw(drawing.made(material)))
    trial = next((one for one in material.heat_maps if f"{_HEAT_MAP}{one.name}" == name), None)
    if trial is None:
        raise ReportError(unknown("figure", name, names or figure_names(material)))
    return _heat_map_of(trial)


def figures_of(
    results: Sequence[TrialResult],
    windows: WindowsOf,
    curves: CurvesOf = lambda trial: {},
    spec: Mapping[str, Any] | None = None,
) -> tuple[NamedFigure, ...]:
    """Every figure these trials have data for, in a fixed order; see `Material` for the arguments."""
    from prunegpt.report.figures import draw

    material = Material(results, windows, curves, spec)
    found = [NamedFigure(name, caption, draw(plot)) for name, caption, plot in plots_of(material)]
    return (*found, *map(_heat_map_of, material.heat_maps))


def _heat_map_of(trial: TrialResult) -> NamedFigure:
    from prunegpt.report.figures import draw

    shares = trial.sparsity.by_tensor if trial.sparsity else {}
    plot = by_block(heat_map(shares), f"{trial.name}: sparsity by layer, %")
    caption = f"Share of zeros of every pruned tensor of {trial.name}, percent"
    return NamedFigure(f"{_HEAT_MAP}{trial.name}", caption, draw(plot))


def plots_of(material: Material) -> Iterator[tuple[str, str, Plot]]:
    """The drawings that have data: name of the file, caption, and what is drawn."""
    for drawing in DRAWINGS.values():
        if not drawing.is_worth(material):
            continue
        choices = list(drawing.choices(material))
        searched, goals = ({getattr(one, field) for one in choices} for field in ("search", "objective"))
        for choice in choices:
            told = [choice.search] * (len(searched) > 1) + [choice.objective] * (len(goals) > 1)
            try:
                plot = drawing.made(material, choice)
            except ReportError:  # it reports what is missing, which a page shows and a report leaves out
                continue
            name = "-".join([drawing.file, *(re.sub(r"\W+", "-", one).strip("-") for one in told)])
            caption = ", ".join([drawing.caption, *told])
            yield name, f"{caption}. {plot.caption}".removesuffix(". ").removesuffix("."), plot
