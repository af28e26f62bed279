"""Figures of a sweep: for Plotly as JSON, and drawn as PNG, SVG and PDF from the same data."""

from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from prunegpt.errors import PruneGPTError, unknown
from prunegpt.report.curve_fields import with_curves
from prunegpt.report.declared import SpecFigures, figures_in
from prunegpt.report.gallery import DRAWINGS
from prunegpt.report.material import FigureChoice, Material, stored_curves
from prunegpt.report.measure import stored_windows
from prunegpt.report.plot import Plot
from prunegpt.spec.figures import FigureSpec
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, ApiRequest, RequestError, attachment, endpoint

_OF_CURVES = ("training", "intermediate")  # figures that grow while something runs


class FigureShort(Answer):
    name: str
    title: str
    missing: str | None = Field(description="why there is nothing to draw; null where there is")
    takes_search: bool = Field(description="whether it is one of a search")
    choices: dict[str, list[str]] = Field(description="query parameter -> what it may be, the default first")


class Figures(Answer):
    figures: list[FigureShort]


class FigureQuery(ApiRequest):
    search: str = Field("", description="which search, where a sweep has several")
    objective: str = Field("", description="which of its objectives")
    x: str = Field("", description="what goes across: a searched value, or an objective")
    y: str = Field("", description="what goes up")

    @property
    def choice(self) -> FigureChoice:
        return FigureChoice(self.search, self.objective, self.x, self.y)


_MEDIA = ("image/png", "image/svg+xml", "application/pdf", "application/json")
Format = Annotated[str, ("png", "svg", "pdf", "json")]


def material(dashboard: Dashboard, sweep: str, figure: str = "") -> tuple[Material, tuple[int, int]]:
    """What the figures of a sweep are drawn from, made once for one state of the store; and that state."""
    with dashboard.source.following():
        spec = dashboard.source.sweep(sweep).spec
        trials = dashboard.source.trials(sweep)
        points = dashboard.source.revision if figure in _OF_CURVES and dashboard.source.running(sweep) else 0
        state = (dashboard.source.sweep_revision(sweep), points)

    def made() -> Material:
        store = dashboard.source.store
        windows = stored_windows(dashboard.root)
        return Material(trials, windows, stored_curves(store), spec)

    return dashboard.kept.get(("material", sweep, bool(points)), state, made), state


def _declared(dashboard: Dashboard, sweep: str) -> dict[str, FigureSpec]:
    """The figures that a sweep declares, by name; one takes the place of a usual one that is called so."""
    return {figure.name: figure for figure in figures_in(dashboard.source.sweep(sweep).spec)}


def drawn(dashboard: Dashboard, sweep: str, figure: str, choice: FigureChoice) -> Plot:
    """One figure of a sweep, made once for one state of the store.

    Raises:
        RequestError: there is no figure of that name.
        PruneGPTError: there is nothing to draw it from.
    """
    declared = _declared(dashboard, sweep)
    own = declared.get(figure)
    if own is None and figure not in DRAWINGS:
        raise RequestError(404, unknown(f"figure of {sweep}", figure, [*declared, *DRAWINGS]))
    found, state = material(dashboard, sweep, own.kind if own else figure)

    def made() -> Plot:
        if own is None:
            return DRAWINGS[figure].made(found, choice)
        store, spec = dashboard.source.store, dashboard.source.sweep(sweep).spec
        trials = with_curves(dashboard.source.trials(sweep), lambda: dashboard.summaries(sweep), figures=[own])
        windows = stored_windows(dashboard.root)
        curve = lambda trial, name: store.series(trial.id, lambda _, other: other == name)  # noqa: E731
        return SpecFigures(spec, trials, windows, curve).plot(own)

    return dashboard.kept.get(("figure", sweep, figure, choice), state, made)


@endpoint("/sweeps/{name}/figures")
def listed(dashboard: Dashboard, name: str) -> Figures:
    """Which figures there are, those that the sweep declares first, what may be chosen, and why others are missing."""
    declared = _declared(dashboard, name)
    own = [_listed_own(dashboard, name, figure) for figure in declared.values()]
    usual = [_listed(dashboard, name, figure) for figure in DRAWINGS if figure not in declared]
    return Figures(figures=[*own, *usual])


def _listed_own(dashboard: Dashboard, sweep: str, figure: FigureSpec) -> FigureShort:
    try:
        drawn(dashboard, sweep, figure.name, FigureChoice())
        missing = None
    except PruneGPTError as error:
        missing = dashboard.root.located(str(error), always=True)
    title = figure.title or (DRAWINGS[figure.kind].title if figure.kind in DRAWINGS else figure.name)
    return FigureShort(name=figure.name, title=title, missing=missing, takes_search=False, choices={})


def _listed(dashboard: Dashboard, sweep: str, name: str) -> FigureShort:
    found, state = material(dashboard, sweep, name)
    missing = dashboard.kept.get(("missing", sweep, name), state, lambda: DRAWINGS[name].missing(found))
    choices = DRAWINGS[name].values(found)
    drawing = DRAWINGS[name]
    searching = "search" in drawing.takes
    return FigureShort(name=name, title=drawing.title, missing=missing, takes_search=searching, choices=choices)


@endpoint("/sweeps/{name}/figures/{figure}.{format}", *_MEDIA)
def download(dashboard: Dashboard, name: str, figure: str, format: Format, asked: FigureQuery) -> Response:
    """A figure as png, svg, pdf or json."""
    found = drawn(dashboard, name, figure, asked.choice)
    if format == "json":
        return Response(found.model_dump_json(), media_type="application/json")
    from prunegpt.report.figures import FORMATS, draw

    media, make = FORMATS[format]
    return Response(make(draw(found)), media_type=media, headers=attachment(f"{name}-{figure}.{format}"))


@endpoint("/sweeps/{name}/figures/{figure}")
def shown(dashboard: Dashboard, name: str, figure: str, asked: FigureQuery) -> Plot:
    """A figure for Plotly."""
    return drawn(dashboard, name, figure, asked.choice)
