"""A trial as one row of a list, and the columns of such a list; what they hold is in `report/fields.py`."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from prunegpt.records import TrialResult
from prunegpt.report.field import FieldKind, Origin, TrialField, display_name
from prunegpt.report.fields import TrialFields
from prunegpt.report.format import number_style
from prunegpt.report.logged import is_logged
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer

_SAMPLE = 500  # trials whose values decide how the numbers of a column are written
_NOT_SHOWN = ("perplexity_low", "perplexity_high", "error", "text")  # columns of a list unless they are asked for

StageState = Literal["published", "running", "waiting", "failed", "diverged", "stopped"]


class StageShort(Answer):
    """One stage of a chain."""

    key: str
    kind: str
    cached: bool
    state: StageState


class TrialRow(Answer):
    """A trial in a list. Sparsities are between 0 and 1; times are seconds since the epoch."""

    id: int
    name: str
    title: str = Field(description="what people call it: the name, or the display name of a W&B run")
    group: str | None
    label: str
    state: str
    seed: int | None
    search: str | None
    reason: str | None
    error: str | None
    perplexity: float | None
    low: float | None
    high: float | None
    loss: float | None
    protocol: str | None
    split: str | None
    text: str | None
    sparsity: float | None
    sparsity_all: float | None
    coverage: float | None
    target: float | None
    tokens: int | None
    own_seconds: float | None = Field(description="of stages that no other trial is charged with")
    seconds: float | None = Field(description="of all its stages")
    attempts: int
    started: float | None
    ended: float | None
    stages: list[StageShort]
    swept: dict[str, Any]
    values: dict[str, Any] = Field(description="of the columns that are not among the above, by key")
    early_stopped: bool
    asked: str = Field(description="what was requested of it and has not happened yet: stop, retry, or empty")
    implicit: bool


class TrialColumn(Answer):
    """A field of trials, as a column of a list shows it."""

    key: str
    name: str = Field(description="in filters")
    label: str
    about: str
    origin: Origin
    swept: bool
    numeric: bool
    kind: FieldKind
    style: Literal["fixed", "exponent", "clock"] = Field(description="how all numbers of the column are written")
    decimals: int


def column(field: TrialField, trials: Sequence[TrialResult]) -> TrialColumn:
    """A field as a column of these trials."""
    how = number_style(field.kind, (field.of(trial) for trial in trials[:_SAMPLE]) if field.numeric else ())
    return TrialColumn(
        key=field.key,
        name=field.name,
        label=field.label,
        about=field.about,
        origin=field.origin,
        swept=field.origin == "swept",
        numeric=field.numeric,
        kind=field.kind,
        style=how.style,
        decimals=how.decimals,
    )


def columns(dashboard: Dashboard, sweep: str, more: Sequence[TrialField] = ()) -> list[TrialColumn]:
    """The columns that a list of trials has unless others are asked for, and those that are.

    The name, what was swept, what was measured; of W&B runs the settings that differ and every metric.
    """
    fields = dashboard.fields(sweep)
    with dashboard.source.following():
        state = dashboard.source.sweep_revision(sweep)
    usual = dashboard.kept.get(
        ("columns", sweep), state, lambda: [column(field, fields.trials) for field in _usual(dashboard, sweep)]
    )
    known = {one.key for one in usual}
    return [*usual, *(column(field, fields.trials) for field in more if field.key not in known)]


def _usual(dashboard: Dashboard, sweep: str) -> list[TrialField]:
    """The fields of the columns that a list has unless others are asked for."""
    fields = dashboard.fields(sweep)
    return dashboard.kept.get(("usual", sweep), id(fields), lambda: _chosen_of(fields))


def _chosen_of(fields: TrialFields) -> list[TrialField]:
    name, *others = fields.fixed.values()
    settings = [field for field in fields.config.values() if fields.differs(field)] if is_logged(fields.trials) else ()
    rest = [field for field in others if field.key not in _NOT_SHOWN]
    return [name, *fields.swept.values(), *settings, *fields.logged.values(), *rest]


def rows(dashboard: Dashboard, trials: Sequence[TrialResult], more: Sequence[TrialField] = ()) -> list[TrialRow]:
    """The trials as rows, with a value of every column of `columns`, and those intervals that are quickly computed.

    Args:
        more: fields beside those of every row.
    """
    intervals = dashboard.intervals.find(trials)
    catalogues = {sweep: dashboard.fields(sweep) for sweep in {trial.sweep for trial in trials}}
    asked = {trial.id: dashboard.asked(trial.sweep, trial.name) for trial in trials}
    valued = {}
    for sweep in catalogues:
        usual = [one for one in _usual(dashboard, sweep) if one.origin != "swept" and one.key not in _OF_ROWS]
        valued[sweep] = list({field.key: field for field in (*usual, *more)}.values())
    return [
        _row(trial, catalogues[trial.sweep], intervals[trial.id], asked[trial.id], valued[trial.sweep])
        for trial in trials
    ]


def _row(
    trial: TrialResult,
    fields: TrialFields,
    interval: tuple[float, float] | None,
    asked: str,
    valued: Sequence[TrialField],
) -> TrialRow:
    said = {key: fields.fixed[key].of(trial) if key in fields.fixed else None for key in _OF_FIELDS}
    low, high = interval or (None, None)
    return TrialRow(
        **said,
        id=trial.id,
        title=display_name(trial),
        asked=asked,
        low=low,
        high=high,
        stages=stages(trial),
        swept=dict(trial.swept),
        values={field.key: field.of(trial) for field in valued},
    )


_NOT_FIELDS = {"id", "title", "asked", "low", "high", "stages", "swept", "values"}
_OF_ROWS = frozenset(TrialRow.model_fields)
_OF_FIELDS = tuple(name for name in TrialRow.model_fields if name not in _NOT_FIELDS)


def stages(trial: TrialResult) -> list[StageShort]:
    """The chain of a trial with how far each stage is; what a failure stopped at has failed, the rest waits."""
    planned, done = trial.plan.stages, {stage.index: stage for stage in trial.stages}
    ahead = [place for place in range(len(planned)) if place not in done]
    lacking = [place for place in ahead if trial.reason == "dependency" and planned[place].teacher]
    reached = (lacking or ahead or [len(planned)])[0]
    found = []
    for place, stage in enumerate(planned):
        state: StageState = "published" if place in done else "waiting"
        if place == reached and trial.state != "finished":
            state = trial.state
        cached = place in done and done[place].cached
        found.append(StageShort(key=stage.key, kind=stage.kind, cached=cached, state=state))
    return found
