"""Panels that people make: any metric over any other, saved with the sweep for anyone who opens its page."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from starlette.responses import Response

from prunegpt.errors import ReportError
from prunegpt.records import TrialResult
from prunegpt.report.metric_plots import MetricCurve, metric_curves, scatter
from prunegpt.report.plot import Plot
from prunegpt.report.query import selected
from prunegpt.root import write_text
from prunegpt.web.api.curves import CurveAnswer, CurvesQuery, drawn
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, ApiRequest, RequestError, attachment, endpoint

_MOST_PANELS = 24
_MOST_CURVES = 50  # trials whose curves one panel draws
_MOST_ASKED = 200  # trials, for a metric that few of them have
_POINTS = 400  # of each
_AXES = {"step": "optimizer steps", "tokens": "tokens trained on", "time": "minutes"}

Name = Annotated[str, Field(max_length=300)]


class PanelSpec(ApiRequest):
    """What one panel shows."""

    kind: Literal["curves", "scatter"] = Field("curves", description="curves of trials, or a point per trial")
    x: Name = Field("step", description="of curves: step, tokens, time or a metric; of points: a field of trials")
    y: Name = Field("", description="a metric; of points a field of trials")
    color: Name = Field("", description="a field of trials that colours points")
    x_log: bool = Field(False, description="logarithmic axis across")
    y_log: bool = Field(False, description="logarithmic axis upwards")
    smoothing: float = Field(0, ge=0, le=1, description="of curves, as for curves of trials")
    where: Name = Field("", description="a filter of trials")


class SavedPanels(ApiRequest):
    panels: tuple[PanelSpec, ...] = Field(max_length=_MOST_PANELS)


class PanelField(Answer):
    key: str
    label: str
    numeric: bool


class Panels(Answer):
    """The saved panels of a sweep, and what they may show."""

    panels: list[PanelSpec]
    metrics: list[str] = Field(description="names of curves")
    fields: list[PanelField] = Field(description="what a point may have across, upwards or as its colour")


@endpoint("/sweeps/{name}/panels")
def saved(dashboard: Dashboard, name: str) -> Panels:
    """The panels that are saved with a sweep, and what panels may show."""
    dashboard.source.sweep(name)
    fields = dashboard.fields(name)
    listed = [*fields.fixed.values(), *fields.swept.values(), *fields.logged.values(), *fields.curves.values()]
    listed += [field for field in fields.config.values() if fields.differs(field)]
    return Panels(
        panels=list(_read(_file(dashboard, name))),
        metrics=list(dashboard.summaries(name).metrics),
        fields=[PanelField(key=one.key, label=one.name, numeric=one.numeric) for one in listed],
    )


@endpoint("/sweeps/{name}/panels/save")
def save(dashboard: Dashboard, name: str, posted: SavedPanels) -> SavedPanels:
    """Replace the panels that are saved with a sweep."""
    dashboard.source.sweep(name)
    path = _file(dashboard, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, posted.model_dump_json(indent=1) + "\n")
    except OSError as error:
        reason = error.strerror or str(error)
        raise RequestError(409, f"panels are saved in the root; {path} cannot be written: {reason}.") from error
    return posted


def _file(dashboard: Dashboard, sweep: str) -> Path:
    return dashboard.root.trial(sweep, "panels.json")  # goes with the sweep when it is removed


def _read(path: Path) -> tuple[PanelSpec, ...]:
    try:
        return SavedPanels.model_validate_json(path.read_bytes()).panels
    except (OSError, ValidationError):  # none yet, or of another version
        return ()


@endpoint("/sweeps/{name}/panel")
def shown(dashboard: Dashboard, name: str, asked: PanelSpec) -> Plot:
    """What a panel shows, for Plotly."""
    return draw(dashboard, name, asked)


@endpoint("/sweeps/{name}/panel.{format}", "image/png", "image/svg+xml", "application/pdf")
def download(
    dashboard: Dashboard, name: str, format: Annotated[str, ("png", "svg", "pdf")], asked: PanelSpec
) -> Response:
    """A panel as png, svg or pdf."""
    from prunegpt.report.figures import FORMATS
    from prunegpt.report.figures import draw as drawn_on_paper

    media, make = FORMATS[format]
    content = make(drawn_on_paper(draw(dashboard, name, asked)))
    return Response(content, media_type=media, headers=attachment(f"{name}-{asked.y}.{format}"))


def draw(dashboard: Dashboard, sweep: str, panel: PanelSpec) -> Plot:
    """A panel.

    Raises:
        ReportError: it shows nothing.
        FieldError: it has a field that no trial has.
        QueryError: its filter is not understood.
    """
    trials = dashboard.source.trials(sweep)
    if not panel.y:
        raise ReportError("a panel needs a metric; none is chosen. Choose what goes up.")
    fields = dashboard.fields(sweep)
    chosen = selected(trials, panel.where, fields) if panel.where else trials
    if panel.kind == "scatter":
        x, y = fields.find(panel.x), fields.find(panel.y)
        color = fields.find(panel.color) if panel.color else None
        return scatter(chosen, x, y, color, x_log=panel.x_log, y_log=panel.y_log)
    asked = CurvesQuery(name=[_exactly(panel.y)], axis=panel.x, points=_POINTS, stage=None, smoothing=panel.smoothing)
    begun = [trial for trial in chosen if trial.state != "waiting"]
    latest = sorted(begun, key=lambda trial: (trial.state != "running", -(trial.started or 0.0)))
    curves: dict[tuple[str, ...], MetricCurve] = {}  # by the stages that they are of, which trials may share
    for trial in latest[:_MOST_ASKED]:
        parts = drawn(dashboard, trial, asked)
        stages = tuple(trial.plan.stages[part.stage].key for part in parts)
        if stages in curves:
            curves[stages].trials.append(trial.address)
        elif parts and len(curves) < _MOST_CURVES:
            curves[stages] = _joined(trial, parts, 1 / 60 if panel.x == "time" else 1.0)
    shown = sum(len(curve.trials) for curve in curves.values())
    more = f"The {shown:,} that began last of {len(begun):,} trials." if len(begun) > _MOST_ASKED else ""
    across = _AXES.get(panel.x, panel.x)
    logs = {"x_log": panel.x_log, "y_log": panel.y_log}
    return metric_curves(list(curves.values()), x=across, y=panel.y, caption=more, **logs)


def _joined(trial: TrialResult, parts: list[CurveAnswer], scale: float) -> MetricCurve:
    """A trial's curve through all its stages."""
    found = MetricCurve(trial, [trial.address])
    for part in parts:
        found.x.extend((x + part.offset) * scale for x in part.x)
        found.y.extend(part.y)
        found.smooth.extend(part.smooth or [None] * len(part.x))
    return found


def _exactly(name: str) -> str:
    """A glob that this name alone matches."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in name)
