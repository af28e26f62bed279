"""How far a sweep is, what runs now, and when it will be done."""

from collections.abc import Sequence

from prunegpt.planning.budget import train_tokens
from prunegpt.records import TrialResult
from prunegpt.spec.plan import StagePlan
from prunegpt.store import SweepRow
from prunegpt.sweep.live import Slot, slot
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer

_ENDED = ("finished", "failed", "diverged", "stopped")


class Progress(Answer):
    """Tokens count each stage once, however many trials share it; null where no text has been counted."""

    done: int
    total: int
    tokens_done: int
    tokens_total: int | None
    eta_seconds: float | None


def slots(dashboard: Dashboard, sweep: str | None = None) -> list[Slot]:
    """What runs now, by trial."""
    known = {trial.id: trial for trial in dashboard.source.every_trial()}
    found = [(known[one.trial], one) for one in dashboard.source.running(sweep)]
    return sorted((slot(trial, one.last.values(), trial.attempts) for trial, one in found), key=lambda one: one.trial)


def progress(
    sweep: SweepRow, trials: Sequence[TrialResult], running: Sequence[Slot], budgets: dict[str, int | None]
) -> Progress:
    """Done and to do, in trials and in tokens, and the seconds that the rest takes at the pace so far.

    `budgets` holds the tokens of stages that were seen before, by key; more is added.
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
    finished, spent = sum(came.values()), sum(seconds.values())
    now = finished + sum(slot.tokens for slot in running)
    eta = None
    if total is not None and running and finished and spent:
        eta = max(0, total - now) / (finished / spent * len(running))  # at the pace of all slots together so far
    return Progress(done=done, total=sweep.trials, tokens_done=now, tokens_total=total, eta_seconds=eta)


def _tokens(plan: StagePlan, budgets: dict[str, int | None]) -> int | None:
    """Tokens that a planned stage will train on, where its text's length is declared or its steps are."""
    if plan.key not in budgets:
        budgets[plan.key] = None if plan.kind == "pretrain" else train_tokens(plan, plan.declared_blocks)
    return budgets[plan.key]
