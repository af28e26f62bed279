"""A trial as one row of a list, and the columns of such a list."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal

from pydantic import Field

from prunegpt.records import EARLY_STOP, TrialResult
from prunegpt.report.columns import asked_sparsity
from prunegpt.report.format import is_number
from prunegpt.report.logged import flat, is_logged, metrics_of
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer

StageState = Literal["published", "running", "waiting", "failed", "diverged", "stopped"]

Plain = bool | int | float | str | None


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
    group: str
    label: str
    state: str
    seed: int
    search: str
    reason: str
    error: str
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
    tokens: int
    seconds: float
    attempts: int
    started: float | None
    ended: float | None
    stages: list[StageShort]
    swept: dict[str, Any]
    logged: dict[str, Any] = Field(description="of a W&B run: settings and last values, by the keys of their columns")
    early_stopped: bool
    implicit: bool


class TrialColumn(Answer):
    """A column that a list of trials may show."""

    key: str
    label: str
    swept: bool
    numeric: bool
    kind: Literal["text", "number", "loss", "percent", "count", "seconds", "time"]


_CONFIG, _METRIC = "config.", "logged."  # what keys of columns of W&B runs begin with
_COLUMNS = (
    ("name", "Trial", "text"),
    ("state", "State", "text"),
    ("perplexity", "Perplexity", "loss"),
    ("sparsity", "Sparsity", "percent"),
    ("sparsity_all", "Sparsity of all", "percent"),
    ("coverage", "Coverage", "percent"),
    ("target", "Target sparsity", "percent"),
    ("loss", "Loss", "loss"),
    ("tokens", "Tokens trained", "count"),
    ("seconds", "Seconds", "seconds"),
    ("label", "Model", "text"),
    ("group", "Group", "text"),
    ("seed", "Seed", "number"),
    ("attempts", "Attempts", "count"),
    ("started", "Started", "time"),
    ("ended", "Ended", "time"),
    ("reason", "Reason", "text"),
    ("search", "Search", "text"),
    ("split", "Measured on", "text"),
)


def columns(trials: Sequence[TrialResult]) -> list[TrialColumn]:
    """The columns of a list of these trials: the name, what was swept, then what was measured.

    Of W&B runs: the settings that differ and every metric.
    """
    fixed = [
        TrialColumn(key=key, label=label, swept=False, numeric=kind != "text", kind=kind)
        for key, label, kind in _COLUMNS
    ]
    paths = dict.fromkeys(path for trial in trials for path in trial.swept)
    swept = [_swept(path, [trial.swept[path] for trial in trials if path in trial.swept]) for path in paths]
    return [fixed[0], *swept, *(_logged_columns(trials) if is_logged(trials) else ()), *fixed[1:]]


def _logged_columns(trials: Sequence[TrialResult]) -> list[TrialColumn]:
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for key, value in _logged(trial).items():
            values.setdefault(key, []).append(value)
    keys = [key for key, found in values.items() if not key.startswith(_CONFIG) or _differ(found, len(trials))]
    return [
        TrialColumn(
            key=key,
            label=key.partition(".")[2],
            swept=False,
            numeric=all(is_number(value) for value in values[key]),
            kind="number" if all(is_number(value) for value in values[key]) else "text",
        )
        for key in keys
    ]


def _differ(values: Sequence[Any], count: int) -> bool:
    return len(values) < count or any(value != values[0] for value in values)


def _logged(trial: TrialResult) -> dict[str, Any]:
    """What a W&B run says of itself, by the keys of columns; nothing of another trial."""
    if not trial.plan.foreign:
        return {}
    return {f"{_CONFIG}{name}": value for name, value in flat(trial.config)} | {
        f"{_METRIC}{name}": value for name, value in metrics_of(trial)
    }


def _swept(path: str, values: Sequence[Any]) -> TrialColumn:
    numeric = all(is_number(value) for value in values if value is not None)
    kind: Literal["number", "text"] = "number" if numeric else "text"
    return TrialColumn(key=f"swept.{path}", label=_short(path), swept=True, numeric=numeric, kind=kind)


def _short(path: str) -> str:
    """The end of a path, enough to know it by: stages.1.prune.sparsity becomes prune.sparsity."""
    return ".".join([part for part in path.split(".") if not part.isdigit()][-2:]) or path


def rows(dashboard: Dashboard, trials: Sequence[TrialResult]) -> list[TrialRow]:
    """The trials as rows, with those intervals that are known or quickly computed."""
    intervals = dashboard.intervals.find(trials)
    return [row(trial, intervals[trial.id]) for trial in trials]


def row(trial: TrialResult, interval: tuple[float, float] | None = None) -> TrialRow:
    """One trial as a row; a perplexity is there only if the trial has finished with one."""
    values: dict[str, Any] = {key: of(trial) for key, of in _VALUES.items()}
    return TrialRow(
        **values,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        stages=stages(trial),
        swept=dict(trial.swept),
        logged=_logged(trial),
        early_stopped=trial.reason == EARLY_STOP,
        implicit=trial.implicit,
    )


def stages(trial: TrialResult) -> list[StageShort]:
    """The chain of a trial with how far each stage is; what a failure stopped at has failed, the rest waits."""
    done = {stage.index: stage for stage in trial.stages}
    found = []
    reached = False
    for index, planned in enumerate(trial.plan.stages):
        state: StageState = "published"
        if index not in done:
            state = "waiting" if reached or trial.state == "finished" else trial.state
            reached = True
        cached = index in done and done[index].cached
        found.append(StageShort(key=planned.key, kind=planned.kind, cached=cached, state=state))
    return found


_OWN = ("id", "name", "state", "label", "group", "seed", "attempts", "started", "ended", "reason", "error")
_VALUES: Mapping[str, Callable[[TrialResult], Plain]] = {
    **{name: attrgetter(name) for name in _OWN},
    "perplexity": lambda trial: trial.measured.perplexity if trial.measured else None,
    "loss": lambda trial: trial.measured.loss if trial.measured else None,
    "protocol": lambda trial: trial.measured.protocol if trial.measured else None,
    "split": lambda trial: trial.measured.split if trial.measured else None,
    "text": lambda trial: trial.measured.comparison_key.text if trial.measured else None,
    "sparsity": lambda trial: trial.sparsity.pruned if trial.state == "finished" and trial.sparsity else None,
    "sparsity_all": lambda trial: trial.sparsity.overall if trial.state == "finished" and trial.sparsity else None,
    "coverage": lambda trial: trial.sparsity.coverage if trial.state == "finished" and trial.sparsity else None,
    "target": asked_sparsity,
    "tokens": lambda trial: sum(stage.train_tokens for stage in trial.stages),
    "seconds": lambda trial: sum(stage.seconds for stage in trial.stages),
    "search": attrgetter("plan.search"),
}


def value(trial: TrialResult, key: str) -> Plain:
    """The value of a trial in a column, for sorting and CSV; None where there is no such column."""
    if key.startswith((_CONFIG, _METRIC)):
        return _logged(trial).get(key)
    if not key.startswith("swept."):
        return _VALUES[key](trial) if key in _VALUES else None
    found = trial.swept.get(key.removeprefix("swept."))
    return found if isinstance(found, bool | int | float | str) or found is None else str(found)
