"""Figures of a sweep: for Plotly as JSON, and drawn as PNG, SVG and PDF from the same data."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult, comparable
from prunegpt.report.gallery import DRAWINGS, Drawing, Material
from prunegpt.report.measure import stored_windows
from prunegpt.report.plots import Plot, curves, in_figures
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, RequestError, attachment, endpoint
from prunegpt.web.plots import importance, importances, parallel

_FEWEST_IMPORTANT = 4  # trials from which importance says something


class FigureShort(Answer):
    name: str
    title: str
    missing: str | None = Field(description="why there is nothing to draw; null where there is")
    files: bool = Field(description="whether it is available as PNG and SVG")


class Figures(Answer):
    figures: list[FigureShort]


def _parallel(material: Material) -> Plot:
    found = _varied(material.trials)
    paths = _differing(found)
    if not paths:
        raise ReportError("a figure needs trials whose searched values differ; there are none yet.")
    values = {_short(path, paths): [trial.swept.get(path) for trial in found] for path in paths}
    return parallel(values, [_perplexity(trial) for trial in found], [trial.name for trial in found])


def _importance(material: Material) -> Plot:
    whole, paths = _important(material.trials)
    settings = [{path: trial.swept.get(path) for path in paths} for trial in whole]
    shares = importances(settings, [_perplexity(trial) for trial in whole])
    return importance({_short(path, paths): share for path, share in shares.items()})


def _important(trials: Sequence[TrialResult]) -> tuple[list[TrialResult], list[str]]:
    """The trials and paths that importance is computed from: the most trials that have the same searched values."""
    found = _varied(trials)
    differing = _differing(found)
    alike: dict[tuple[str, ...], list[TrialResult]] = {}
    for trial in found:
        alike.setdefault(tuple(path for path in differing if path in trial.swept), []).append(trial)
    telling = [some for some in alike.values() if len(some) >= _FEWEST_IMPORTANT and len(_differing(some)) > 1]
    whole = max(telling or alike.values(), key=len, default=[])
    paths = _differing(whole)
    if len(whole) < _FEWEST_IMPORTANT or not paths:
        raise ReportError(
            f"importance needs {_FEWEST_IMPORTANT} measured trials whose searched values differ; there are "
            f"{len(whole) if paths else 0} yet."
        )
    if len(paths) == 1:
        raise ReportError(f"importance needs two searched values to compare; {paths[0]} is the only one.")
    distinct = {_perplexity(trial) for trial in whole}
    if len(distinct) == 1:
        raise ReportError(
            f"importance needs trials whose perplexity differs; that of all {len(whole)} is {distinct.pop():.4g}."
        )
    return whole, paths


def _varied(trials: Sequence[TrialResult]) -> list[TrialResult]:
    return [trial for trial in comparable(trials) if trial.measured and trial.swept and not trial.implicit]


def _perplexity(trial: TrialResult) -> float:
    assert trial.measured is not None
    assert trial.measured.perplexity is not None
    return trial.measured.perplexity


def _differing(trials: list[TrialResult]) -> list[str]:
    """Paths with several values, in the order they are first met."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        for path, value in trial.swept.items():
            values.setdefault(path, set()).add(repr(value))
    return [path for path, found in values.items() if len(found) > 1]


def _short(path: str, paths: Sequence[str]) -> str:
    """The shortest end of a path that no other has."""
    parts = path.split(".")
    for length in range(1, len(parts)):
        end = ".".join(parts[-length:])
        if sum(other.split(".")[-length:] == parts[-length:] for other in paths) == 1 and not end.isdigit():
            return end
    return path


_DRAWINGS: Mapping[str, Drawing] = {
    **DRAWINGS,
    "parallel": Drawing("Searched values and perplexity", "", "", _parallel),
    "importance": Drawing("What perplexity depends on", "", "", _importance),
}  # those without a file are drawn by Plotly alone
FigureName = Annotated[str, tuple(_DRAWINGS)]
_MEDIA = ("image/png", "image/svg+xml", "application/pdf", "application/json")
Format = Annotated[str, ("png", "svg", "pdf", "json")]


def drawn(dashboard: Dashboard, sweep: str, figure: str) -> Plot:
    """One figure of a sweep, made once for one state of the store."""
    with dashboard.source.following():
        trials = [trial for trial in dashboard.source.trials(sweep) if not trial.implicit]
        points = dashboard.source.revision if figure == "training" and dashboard.source.running(sweep) else 0
        state = (dashboard.source.sweep_revision(sweep), points)

    def made() -> Plot:
        store = dashboard.source.store
        windows = stored_windows(dashboard.root)
        material = Material(trials, windows, lambda trial: curves(trial, store.series(trial.id, in_figures)))
        return _DRAWINGS[figure].plot(material)

    return dashboard.kept.get(("figure", sweep, figure), state, made)


@endpoint("/sweeps/{name}/figures")
def listed(dashboard: Dashboard, name: str) -> Figures:
    """Which figures there are, and why others are missing."""
    return Figures(figures=[_listed(dashboard, name, figure) for figure in _DRAWINGS])


def _listed(dashboard: Dashboard, sweep: str, name: str) -> FigureShort:
    missing = None
    try:
        if name == "importance":  # costly to compute, cheap to know whether there is any
            _important([trial for trial in dashboard.source.trials(sweep) if not trial.implicit])
        else:
            drawn(dashboard, sweep, name)
    except ReportError as error:
        missing = str(error)
    return FigureShort(name=name, title=_DRAWINGS[name].title, missing=missing, files=bool(_DRAWINGS[name].file))


@endpoint("/sweeps/{name}/figures/{figure}.{format}", *_MEDIA)
def download(dashboard: Dashboard, name: str, figure: FigureName, format: Format) -> Response:
    """A figure as png, svg, pdf or json."""
    found = drawn(dashboard, name, figure)
    if format == "json":
        return Response(found.model_dump_json(), media_type="application/json")
    if not _DRAWINGS[figure].file:
        raise RequestError(404, f"the figure {figure!r} is drawn in the browser alone. Take it as json.")
    from prunegpt.report.figures import FORMATS, draw

    media, make = FORMATS[format]
    return Response(make(draw(found)), media_type=media, headers=attachment(f"{name}-{figure}.{format}"))


@endpoint("/sweeps/{name}/figures/{figure}")
def shown(dashboard: Dashboard, name: str, figure: FigureName) -> Plot:
    """A figure for Plotly."""
    return drawn(dashboard, name, figure)
