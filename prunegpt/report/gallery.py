"""The figures that a sweep has data for: one list of them, for pages and for paper."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prunegpt.errors import ReportError, unknown
from prunegpt.records import TrialResult
from prunegpt.report import search_plots
from prunegpt.report.material import CurvesOf, FigureChoice, Material, chosen
from prunegpt.report.measure import WindowsOf
from prunegpt.report.plot import Plot, need
from prunegpt.report.plots import (
    by_block,
    by_layer,
    heat_map,
    training,
)
from prunegpt.report.quality import (
    AXES,
    SPARSITY,
    QualityAxis,
    front,
    have_lines,
    over_sparsity,
)
from prunegpt.report.searched import important

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes a quarter of a second, which pages do without


T = TypeVar("T")
_FIRST = FigureChoice()  # of everything
_FEW = 2  # sparsities, or layers, that make a figure worth a place in a report


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
        check: raises what `plot` would where there is nothing to draw, without drawing.
    """

    title: str
    file: str
    caption: str
    plot: Callable[[Material, FigureChoice], Plot]
    check: Callable[[Material, FigureChoice], Any]
    is_worth: Callable[[Material], bool] = lambda material: True
    takes: tuple[str, ...] = ()
    of_objectives: bool = False

    def values(self, material: Material, choice: FigureChoice = _FIRST) -> dict[str, list[str]]:
        """What may be chosen of it: field of `FigureChoice` -> its values, the first the default."""
        if not self.takes or not material.searches:
            return {}
        searched = material.searched(choice)
        axes = searched.paths
        if self.of_objectives:
            axes = list(searched.objectives) if len(searched.objectives) > 1 else []
        names, objectives = material.search_names, list(searched.objectives)
        every = {"search": names, "objective": objectives, "x": axes, "y": axes[1:] + axes[:1]}
        return {name: every[name] for name in self.takes}

    def missing(self, material: Material) -> str | None:
        """Why there is nothing to draw; None where there is."""
        try:
            self.check(material, self._settled(material, _FIRST))
        except ReportError as error:
            return str(error)
        return None

    def made(self, material: Material, choice: FigureChoice = _FIRST) -> Plot:
        """The figure, with its defaults in place of what is not chosen.

        Raises:
            ReportError: there is nothing to draw.
            UnknownPartError: no such search, objective or searched value.
        """
        return self.plot(material, self._settled(material, choice))

    def _settled(self, material: Material, choice: FigureChoice) -> FigureChoice:
        values = self.values(material, choice)
        for field, valid in values.items():
            need(valid, "a search with two objectives" if self.of_objectives else "trials whose searched values differ")
            choice = replace(choice, **{field: chosen(field, getattr(choice, field), valid)})
        return choice

    def choices(self, material: Material) -> Iterator[FigureChoice]:
        """Those that a report has: every objective of every search."""
        for search in material.search_names if "search" in self.takes else ("",):
            objectives = self.values(material, FigureChoice(search)).get("objective", ("",))
            yield from (FigureChoice(search, objective) for objective in objectives)


def _searching(plot: Callable[..., T], *fields: str) -> Callable[[Material, FigureChoice], T]:
    """Asks the function about the chosen search, with these fields of the choice."""
    return lambda material, choice: plot(material.searched(choice), *(getattr(choice, field) for field in fields))


def _intermediate(material: Material, choice: FigureChoice) -> Plot:
    searched = material.searched(choice)
    return search_plots.intermediate(searched, list(material.intermediate(searched)))


def _check_intermediate(material: Material, choice: FigureChoice) -> None:
    first = next(material.intermediate(material.searched(choice)), ())
    need(first, "trials that were measured while they trained")


def _measured(material: Material, axis: QualityAxis) -> None:
    if axis.sized and len(material.sizes) < _FEW:  # else sparsity says the same
        need((), "models of different numbers of parameters")
    need([*islice(material.each_whole(axis), 1)], axis.needs)


def _front(axis: QualityAxis, file: str, caption: str) -> "Drawing":
    """Perplexity against what goes across an axis, with the front of both."""

    def several(material: Material) -> bool:
        differ = not axis.sized or len(material.sizes) > 1
        return differ and len({f"{point.x:.3g}" for point in material.whole(axis)}) >= _FEW

    def plot(material: Material, _: FigureChoice) -> Plot:
        _measured(material, axis)
        return front(material.whole(axis), axis)

    return Drawing(
        axis.title,
        file,
        f"{caption}, and the front that no configuration beats in both",
        plot,
        lambda material, _: _measured(material, axis),
        several,
    )


def _check_lines(material: Material, choice: FigureChoice) -> None:
    _measured(material, SPARSITY)
    need([True] * have_lines(material.each_whole()), "trials that differ in sparsity alone")


def _check_importance(material: Material, choice: FigureChoice) -> None:
    searched = material.searched(choice)
    reasons = []
    for objective in searched.objectives:
        try:
            important(searched, objective)
        except ReportError as error:
            reasons.append(error)
    if len(reasons) == len(searched.objectives):
        raise reasons[0]


def _several(material: Material) -> bool:
    return len({round(point.x, 1) for point in material.whole()}) >= _FEW


DRAWINGS: Mapping[str, Drawing] = {
    "sparsity": Drawing(
        "Perplexity over sparsity",
        "perplexity-over-sparsity",
        "Perplexity over the sparsity that was measured, with intervals; a line joins what differs in sparsity alone",
        lambda material, _: over_sparsity(material.whole()),
        _check_lines,
        _several,
    ),
    "pareto": _front(SPARSITY, "pareto", "Sparsity against perplexity"),
    "speed": _front(AXES["speed"], "perplexity-against-speed", "Perplexity against the speed-up that was measured"),
    "size": _front(AXES["size"], "perplexity-against-size", "Perplexity against the parameters that are not zero"),
    "bytes": _front(AXES["bytes"], "perplexity-against-bytes", "Perplexity against the size of the files"),
    "layers": Drawing(
        "One layer pruned at a time",
        "layers",
        "Perplexity when one decoder layer is pruned",
        lambda material, _: by_layer(material.bars, dense=material.dense),
        lambda material, _: need(material.bars, "trials that pruned a single layer"),
        lambda material: len({bar.layer for bar in material.bars}) >= _FEW,
    ),
    "training": Drawing(
        "Perplexity and sparsity in training",
        "training",
        "Perplexity and sparsity over optimizer steps",
        _training,
        lambda material, _: need(material.curves, "curve points"),
    ),
    "history": Drawing(
        "History of the search",
        "history",
        "The objective of every trial in the order of the search, and the best so far",
        _searching(search_plots.history, "objective"),
        _searching(search_plots.check_history, "objective"),
        takes=("search", "objective"),
    ),
    "objectives": Drawing(
        "Two objectives",
        "objectives",
        "Two objectives against each other, and the front that no trial beats in both",
        _searching(search_plots.objectives, "x", "y"),
        _searching(search_plots.both_measured, "x", "y"),
        takes=("search", "x", "y"),
        of_objectives=True,
    ),
    "parallel": Drawing(
        "Searched values and objective",
        "parallel",
        "One line per trial over its searched values to its objective, the better the darker",
        _searching(search_plots.parallel, "objective"),
        _searching(search_plots.varied, "objective"),
        takes=("search", "objective"),
    ),
    "importance": Drawing(
        "What the objectives depend on",
        "importance",
        "The share of each searched value in what makes the best trials (PED-ANOVA)",
        _searching(search_plots.importance),
        _check_importance,
        takes=("search",),
    ),
    "slice": Drawing(
        "Objective over each searched value",
        "slice",
        "The objective over each searched value",
        _searching(search_plots.slices, "objective"),
        _searching(search_plots.varied, "objective"),
        takes=("search", "objective"),
    ),
    "contour": Drawing(
        "Objective over two searched values",
        "contour",
        "The objective over two searched values, interpolated between the trials",
        _searching(search_plots.contour, "objective", "x", "y"),
        _searching(search_plots.spanning, "objective", "x", "y"),
        takes=("search", "objective", "x", "y"),
    ),
    "intermediate": Drawing(
        "Intermediate values",
        "intermediate",
        "Perplexity while trials trained; those that were stopped early are dashed",
        _intermediate,
        _check_intermediate,
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
