"""Sweeps, and how far they are."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from prunegpt import __version__
from prunegpt.planning.budget import train_tokens
from prunegpt.records import TrialResult, comparable
from prunegpt.report.logged import is_logged
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.search import searches_of
from prunegpt.store import SweepRow
from prunegpt.sweep.live import Slot, slot
from prunegpt.sweep.lock import Holder, coordinator
from prunegpt.sweep.queue import Waiter, waiting
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, endpoint

_ENDED = ("finished", "failed", "diverged", "stopped")
Progression = Literal["running", "finished", "failed", "waiting", "empty"]


class Best(Answer):
    """The trial with the lowest perplexity of those measured as most are."""

    trial: str
    perplexity: float


class Counts(Answer):
    """Trials by state."""

    finished: int
    running: int
    waiting: int
    failed: int
    diverged: int
    stopped: int


class SweepHead(Answer):
    """What is shown of a sweep wherever it is."""

    name: str
    title: str
    state: Progression
    created: float
    updated: float
    best: Best | None
    running_now: bool = Field(description="whether a coordinator, or agents, run trials of it")
    logged: bool = Field(description="its trials are runs that W&B clients have logged: none can be run here")


class SweepShort(SweepHead, Counts):
    """A sweep in the list of all."""

    trials: int
    total: int = Field(description="trials, with those that its searches are yet to suggest")


class Sweeps(Answer):
    sweeps: list[SweepShort]
    coordinator: Holder | None = Field(description="the process that runs trials of this root; its sweep may be empty")
    queue: list[Waiter] = Field(
        description="who waits to run a sweep of this root, in order; higher priority goes first"
    )


class SearchShort(Answer):
    """A search of a sweep."""

    name: str
    objectives: list[str]
    n_trials: int | None
    sampler: str
    trials: int


class SweepProgress(Answer):
    """Tokens count each stage once, however many trials share it; null where no text has been counted."""

    done: int
    total: int
    tokens_done: int
    tokens_total: int | None
    eta_seconds: float | None


class SweepDetail(SweepHead):
    """One sweep."""

    revision: str = Field(description="what /events takes as `since`, to get all that changes from here on")
    source: str | None
    coordinator: Holder | None = Field(description="the process that runs trials of this root; its sweep may be empty")
    place: int | None = Field(
        description="in the queue of the root, 1 is next; null where it does not wait for its turn"
    )
    asked: str = Field(description="what was requested of it and has not happened yet: stop, kill, or empty")
    counts: Counts
    progress: SweepProgress
    tables: list[str]
    searches: list[SearchShort]
    optuna: str | None = Field(description="command for Optuna's dashboard; null where there is no search")
    swept: list[str]
    slots: list[Slot]
    unchecked: list[str]


class Health(Answer):
    status: Literal["ok"]
    version: str


@endpoint("/health")
def health(dashboard: Dashboard) -> Health:
    """Whether the server answers."""
    return Health(status="ok", version=__version__)


@endpoint("/sweeps")
def listed(dashboard: Dashboard) -> Sweeps:
    """All sweeps with their progress and best trial."""
    holder = coordinator(dashboard.root)
    with dashboard.source.following():
        found = [short(dashboard, sweep, holder) for sweep in dashboard.source.sweeps()]
    return Sweeps(sweeps=found, coordinator=holder, queue=waiting(dashboard.root))


def short(dashboard: Dashboard, sweep: SweepRow, holder: Holder | None) -> SweepShort:
    """A sweep for the list."""
    trials = dashboard.source.trials(sweep.name)
    return SweepShort(
        **counts(sweep).model_dump(),
        **_head(dashboard, sweep, holder, trials),
        trials=sweep.trials,
        total=sweep.trials + _ahead(sweep, trials),
    )


def _head(
    dashboard: Dashboard, sweep: SweepRow, holder: Holder | None, trials: Sequence[TrialResult]
) -> dict[str, Any]:
    return {
        **{name: getattr(sweep, name) for name in ("name", "title", "created", "updated")},
        "state": _state(sweep),
        "best": best(dashboard, sweep.name),
        "running_now": _runs(dashboard, sweep, holder),
        "logged": is_logged(trials),
    }


def _runs(dashboard: Dashboard, sweep: SweepRow, holder: Holder | None) -> bool:
    """Whether its coordinator is there, or somebody else runs trials of it."""
    if holder is not None and holder.sweep == sweep.name:
        return True
    return bool(sweep.states.get("running")) and any(map(dashboard.runs, dashboard.source.trials(sweep.name)))


def counts(sweep: SweepRow) -> Counts:
    """How many trials are in each state."""
    states = {str(state): count for state, count in sweep.states.items()}
    return Counts(**{state: states.get(state, 0) for state in Counts.model_fields})


def best(dashboard: Dashboard, sweep: str) -> Best | None:
    """The best trial of a sweep, looked for once for each state of the store."""
    with dashboard.source.following():
        revision, trials = dashboard.source.sweep_revision(sweep), dashboard.source.trials(sweep)
    return dashboard.kept.get(("best", sweep), revision, lambda: best_of(trials))


def best_of(trials: list[TrialResult]) -> Best | None:
    shown = comparable([one for one in trials if not one.implicit])
    measured = [(found.perplexity, one.address) for one in shown if (found := one.measured) and found.perplexity]
    if not measured:
        return None
    perplexity, trial = min(measured)
    return Best(trial=trial, perplexity=perplexity)


@endpoint("/sweeps/{name}")
def one(dashboard: Dashboard, name: str) -> SweepDetail:
    """One sweep: progress, what runs, tables, searches."""
    holder = coordinator(dashboard.root)
    with dashboard.source.following():
        mark = dashboard.source.mark
        sweep = dashboard.source.sweep(name)
        trials = dashboard.source.trials(name)
        running = slots(dashboard, name)
    searches = _searches(sweep, trials)
    study = dashboard.root.command("sweep", "study", name, "--out", f"{name}.db", always=True)
    return SweepDetail(
        **_head(dashboard, sweep, holder, trials),
        revision=mark,
        source=sweep.source,
        coordinator=holder,
        place=next((place for place, one in enumerate(waiting(dashboard.root), 1) if one.sweep == name), None),
        asked=dashboard.asked(name),
        counts=counts(sweep),
        progress=progress(sweep, trials, running, dashboard.budgets),
        tables=[str(table.get("name") or table.get("title", "")) for table in sweep.tables],
        searches=searches,
        optuna=study if searches else None,
        swept=list(dict.fromkeys(path for trial in trials for path in trial.swept)),
        slots=running,
        unchecked=list(sweep.unchecked),
    )


def _searches(sweep: SweepRow, trials: Sequence[TrialResult]) -> list[SearchShort]:
    """The searches that a sweep's spec writes."""
    return [
        SearchShort(
            name=name,
            objectives=[f"{each.direction or ''} {each.metric}".strip() for each in search.objectives],
            n_trials=search.n_trials,
            sampler=search.sampler,
            trials=sum(1 for trial in trials if trial.plan.search == name),
        )
        for name, search in searches_of(sweep.spec).items()
    ]


def _ahead(sweep: SweepRow, trials: Sequence[TrialResult]) -> int:
    """How many trials its searches are yet to suggest."""
    return sum(max(0, (search.n_trials or 0) - search.trials) for search in _searches(sweep, trials))


def _state(sweep: SweepRow) -> Progression:
    if not sweep.trials:
        return "empty"
    if sweep.states.get("running"):
        return "running"
    if sweep.states.get("waiting"):
        return "waiting"
    return "failed" if sweep.states.get("failed") else "finished"


def slots(dashboard: Dashboard, sweep: str | None = None) -> list[Slot]:
    """What runs now, by trial."""
    known = {trial.id: trial for trial in dashboard.source.every_trial()}
    found = [(known[one.trial], one) for one in dashboard.source.running(sweep)]
    return sorted((slot(trial, one.last.values(), trial.attempts) for trial, one in found), key=lambda one: one.trial)


def progress(
    sweep: SweepRow, trials: Sequence[TrialResult], running: Sequence[Slot], budgets: dict[str, int | None]
) -> SweepProgress:
    """Done and to do, in trials and in tokens, and the seconds that the rest takes at the pace so far.

    Trials that searches are yet to suggest count, with as many tokens as the others have on average. `budgets` holds
    the tokens of stages that were seen before, by key; more is added.
    """
    done = sum(sweep.states.get(state, 0) for state in _ENDED)  # type: ignore[call-overload]
    planned: dict[str, int | None] = {}
    came: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for trial in trials:
        for index, stage in enumerate(trial.plan.stages):
            if index < len(trial.stages):
                record = trial.stages[index]
                planned[stage.key] = came[stage.key] = record.train_tokens
                seconds[stage.key] = record.seconds
            elif stage.key not in planned:
                planned[stage.key] = _tokens(stage, budgets)
    known = [tokens for tokens in planned.values() if tokens is not None]
    total = sum(known) if len(known) == len(planned) else None
    ahead = _ahead(sweep, trials)
    if total is not None and trials:
        total += ahead * total // len(trials)
    finished, spent = sum(came.values()), sum(seconds.values())
    now = finished + sum(slot.tokens for slot in running)
    eta = None
    if total is not None and running and finished and spent:
        eta = max(0, total - now) / (finished / spent * len(running))  # at the pace of all slots together so far
    return SweepProgress(done=done, total=sweep.trials + ahead, tokens_done=now, tokens_total=total, eta_seconds=eta)


def _tokens(plan: StagePlan, budgets: dict[str, int | None]) -> int | None:
    """Tokens that a planned stage will train on, where its text's length is declared or its steps are."""
    if plan.key not in budgets:
        budgets[plan.key] = None if plan.kind == "pretrain" else train_tokens(plan, plan.declared_blocks)
    return budgets[plan.key]
