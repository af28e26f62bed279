"""Curves: for drawing with fewer points, for keeping with all of them."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from prunegpt.records import TrialResult
from prunegpt.report.metric_plots import smoothed
from prunegpt.report.plot import Plot
from prunegpt.report.plots import by_block, extremes, heat_map, heat_plot
from prunegpt.report.render.csv import lines
from prunegpt.spec.names import by_parameter
from prunegpt.store.series import Series
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, ApiRequest, attachment, endpoint

OWN_AXES = ("step", "tokens", "time")

_DEFAULT = ("perplexity", "loss", "ce", "kd", "hidden", "sparsity", "sparsity_target", "learning_rate", "eval_*")
_MOST_CURVES = 400
_STEPS = ("train/global_step", "trainer/global_step", "global_step")  # what W&B runs count optimizer steps by
_PER_TENSOR = "sparsity/"
_FIELDS = ("stage", "kind", "name", "step", "epoch", "tokens", "time", "value")
_ROWS_AT_ONCE = 5000


class CurveAnswer(Answer):
    """One curve; y is null where a value was not finite."""

    stage: int
    kind: str
    name: str
    x: list[float]
    y: list[float | None]
    total: int = Field(description="points before some were left out")
    smooth: list[float | None] | None = Field(description="y smoothed over all of its points, where that was asked for")
    offset: float = Field(description="what the chain's earlier stages add to x, to draw stages one after another")


class Curves(Answer):
    axis: str
    curves: list[CurveAnswer]


class CurvesQuery(ApiRequest):
    name: list[str] = Field([], description="names or globs, such as sparsity/*; default: the usual ones")
    axis: str = Field(
        "step",
        max_length=500,
        description="what x is: step, tokens (trained on), time (seconds since the stage began), or another metric",
    )
    smoothing: float = Field(0, ge=0, le=1, description="of the time-weighted moving average of W&B; 0: none")
    points: int = Field(1000, ge=5, le=20_000, description="points of a curve at most; extremes stay")
    stage: int | None = Field(None, ge=0, le=1000, description="only of this stage, by its position in the chain")


class Layers(Answer):
    """Share of zeros by tensor over time; values[tensor][step], null where there is none."""

    tensors: list[str]
    steps: list[float]
    values: list[list[float | None]]
    measured: bool = Field(description="false: over time from curves; true: one column, counted at the end")


class Downloaded(ApiRequest):
    name: list[str] = Field([], description="names or globs (default: all)")


@endpoint("/trials/{sweep}/{trial}/curves")
def curves(dashboard: Dashboard, sweep: str, trial: str, asked: CurvesQuery) -> Curves:
    """Curves for drawing: fewer points, extremes kept."""
    return Curves(axis=asked.axis, curves=drawn(dashboard, dashboard.source.trial(sweep, trial), asked))


def drawn(dashboard: Dashboard, trial: TrialResult, asked: CurvesQuery) -> list[CurveAnswer]:
    """The curves of a trial as they are drawn."""
    patterns = asked.name or list(_DEFAULT)
    kinds = dict(enumerate(stage.kind for stage in trial.plan.stages))

    def wanted(stage: int, name: str) -> bool:
        return asked.stage in (None, stage) and any(fnmatchcase(name, pattern) for pattern in patterns)

    found = dashboard.source.store.series(trial.id, wanted)[:_MOST_CURVES]
    if asked.axis not in OWN_AXES:
        return [_answer(asked, one, x, 0.0, kinds) for one, x in _over_metric(dashboard, trial, found, asked.axis)]
    if trial.plan.foreign and asked.axis == "step":
        found = _by_their_own_step(dashboard, trial, found)
    across = _across(found, asked.axis)
    before = _before(trial, asked.axis, found, across)
    return [_answer(asked, one, x, before[one.stage], kinds) for one, x in zip(found, across, strict=True)]


def _answer(
    asked: CurvesQuery, one: Series, x: NDArray[np.float64], offset: float, kinds: Mapping[int, str]
) -> CurveAnswer:
    kept = extremes(one.values, asked.points)
    smooth = smoothed(x, one.values, asked.smoothing) if asked.smoothing else None
    return CurveAnswer(
        stage=one.stage,
        kind=kinds.get(one.stage, ""),
        name=one.name,
        x=x[kept].tolist(),
        y=_nullable(one.values[kept]),
        smooth=None if smooth is None else _nullable(smooth[kept]),
        total=len(one.values),
        offset=offset,
    )


def _over_metric(
    dashboard: Dashboard, trial: TrialResult, found: list[Series], metric: str
) -> Iterator[tuple[Series, NDArray[np.float64]]]:
    """Curves at those of their steps where another metric of the same stage has a value, and these values."""
    others = {one.stage: one for one in dashboard.source.store.series(trial.id, lambda _, name: name == metric)}
    for one in found:
        other = others.get(one.stage)
        if other is None:
            continue
        places = np.minimum(np.searchsorted(other.steps, one.steps), len(other.steps) - 1)
        both = (other.steps[places] == one.steps) & np.isfinite(other.values[places])
        if both.any():
            columns = {name: getattr(one, name)[both] for name in ("steps", "values", "times", "tokens", "epochs")}
            yield replace(one, **columns), other.values[places][both]


def _by_their_own_step(dashboard: Dashboard, trial: TrialResult, found: list[Series]) -> list[Series]:
    """Curves of a W&B run over the optimizer steps that it has logged beside them, where it has and they grow."""
    axes = {one.name: one for one in dashboard.source.store.series(trial.id, lambda _, name: name in _STEPS)}
    made = []
    for one in found:
        for axis in (axes[name] for name in _STEPS if name in axes and name != one.name):
            places = np.searchsorted(axis.steps, one.steps)
            places[places == len(axis.steps)] = 0
            over = axis.values[places]
            if (axis.steps[places] == one.steps).all() and np.isfinite(over).all() and (np.diff(over) > 0).all():
                one = replace(one, steps=over.astype(np.int64))
                break
        made.append(one)
    return made


def _across(found: list[Series], axis: str) -> list[NDArray[np.float64]]:
    """What is on the x axis, by curve; times are counted from the first point of their stage."""
    if axis != "time":
        return [(one.steps if axis == "step" else one.tokens).astype(np.float64) for one in found]
    starts = {one.stage: min(other.times.min() for other in found if other.stage == one.stage) for one in found}
    return [one.times - starts[one.stage] for one in found]


def _before(trial: TrialResult, axis: str, found: list[Series], across: list[NDArray[np.float64]]) -> dict[int, float]:
    """What the stages before each add to x: as recorded, or as far as their curves go."""
    lengths: dict[int, float] = defaultdict(float)
    for one, x in zip(found, across, strict=True):
        lengths[one.stage] = max(lengths[one.stage], float(x.max()))
    for stage in trial.stages:
        recorded = {"step": stage.steps, "tokens": stage.train_tokens, "time": stage.seconds}[axis]
        lengths[stage.index] = max(lengths[stage.index], float(recorded))
    return {stage: sum(lengths[earlier] for earlier in lengths if earlier < stage) for stage in lengths}


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    return [value if finite else None for value, finite in zip(values.tolist(), np.isfinite(values), strict=True)]


@endpoint("/trials/{sweep}/{trial}/layers")
def layers(dashboard: Dashboard, sweep: str, trial: str) -> Layers:
    """Sparsity by tensor over time."""
    result = dashboard.source.trial(sweep, trial)
    found = dashboard.source.store.series(result.id, lambda _, name: name.startswith(_PER_TENSOR))
    if not found:
        counted = by_parameter(result.sparsity.by_tensor) if result.sparsity else {}
        values = [[share] for share in counted.values()]
        return Layers(tensors=list(counted), steps=[0.0] if counted else [], values=list(values), measured=True)
    before = _before(result, "step", found, _across(found, "step"))
    tensors = list(dict.fromkeys(one.name.removeprefix(_PER_TENSOR) for one in found))
    at = sorted({before[one.stage] + step for one in found for step in one.steps.tolist()})
    position = {step: index for index, step in enumerate(at)}
    table = np.full((len(tensors), len(at)), np.nan)  # [tensors, steps]
    for one in found:
        row = tensors.index(one.name.removeprefix(_PER_TENSOR))
        table[row, [position[before[one.stage] + step] for step in one.steps.tolist()]] = one.values
    return Layers(tensors=tensors, steps=at, values=[_nullable(row) for row in table], measured=False)


@endpoint("/trials/{sweep}/{trial}/figures/layers")
def heat_map_of(dashboard: Dashboard, sweep: str, trial: str) -> Plot:
    """Sparsity by tensor, as a heat map for Plotly: over time where it was recorded, else by decoder layer."""
    found = layers(dashboard, sweep, trial)
    if not found.tensors:
        return Plot(data=[], layout={}, caption="Nothing was pruned.")
    title = f"Sparsity by layer of {trial}, %"
    if len(found.steps) < 2:
        return by_block(
            heat_map({name: row[0] or 0.0 for name, row in zip(found.tensors, found.values, strict=True)}), title
        )
    shares = [[None if value is None else 100 * value for value in row] for row in found.values]
    across = {"title": {"text": "optimizer step"}}
    return heat_plot(shares, found.steps, found.tensors, title, across, "step")


@endpoint("/trials/{sweep}/{trial}/points.csv", "text/csv")
def as_csv(dashboard: Dashboard, sweep: str, trial: str, asked: Downloaded) -> Response:
    """Every point as CSV."""
    points = _points(dashboard, sweep, trial, asked)

    def parts() -> Iterator[str]:
        rows = itertools.chain([_FIELDS], points)
        while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            yield lines(some)

    return StreamingResponse(parts(), media_type="text/csv", headers=attachment(f"{trial}-points.csv"))


@endpoint("/trials/{sweep}/{trial}/points.json")
def as_json(dashboard: Dashboard, sweep: str, trial: str, asked: Downloaded) -> Response:
    """Every point as JSON."""
    points = _points(dashboard, sweep, trial, asked)

    def parts() -> Iterator[str]:
        yield '{"points":['
        between = ""
        while some := list(itertools.islice(points, _ROWS_AT_ONCE)):
            told = (json.dumps(dict(zip(_FIELDS, row, strict=True)), ensure_ascii=False) for row in some)
            yield between + ",".join(told)
            between = ","
        yield "]}"

    return StreamingResponse(parts(), media_type="application/json", headers=attachment(f"{trial}-points.json"))


def _points(
    dashboard: Dashboard, sweep: str, name: str, asked: Downloaded
) -> Iterator[tuple[int | float | str | None, ...]]:
    """Every point that is asked for in full precision, in the order of _FIELDS; errors are raised immediately."""
    trial = dashboard.source.trial(sweep, name)
    found = dashboard.source.store.series(
        trial.id, lambda _, name: not asked.name or any(fnmatchcase(name, pattern) for pattern in asked.name)
    )
    return _in_rows(trial, found)


def _in_rows(trial: TrialResult, found: list[Series]) -> Iterator[tuple[int | float | str | None, ...]]:
    kinds = dict(enumerate(stage.kind for stage in trial.plan.stages))
    for one in found:
        columns = (one.steps.tolist(), one.epochs.tolist(), one.tokens.tolist(), one.times.tolist())
        for step, epoch, tokens, at, value in zip(*columns, _nullable(one.values), strict=True):
            yield one.stage, kinds.get(one.stage, ""), one.name, step, epoch, tokens, at, value
