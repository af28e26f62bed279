"""Why an attempt ended, and whether its trial is tried again."""

import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prunegpt.launch.base import Exited
from prunegpt.planning.budget import micro_batch
from prunegpt.records import AttemptRecord, TrialState
from prunegpt.spec.execution import FailureSpec
from prunegpt.spec.plan import StagePlan, TrialPlan

NO_MEMORY = "out-of-memory"
_WORDS_OF_NO_MEMORY = ("MemoryError", "out of memory", "oom-kill", "Cannot allocate memory", "std::bad_alloc")


@dataclass(frozen=True)
class Ending:
    """An end that the coordinator has asked an attempt for."""

    reason: str  # early-stop, time-limit, lost, or `stopped` at a user's request
    message: str
    state: Literal["stopped", "failed"]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a trial after one of its attempts."""

    record: AttemptRecord
    state: TrialState
    retried: bool = False


def judge(
    record: AttemptRecord,
    trial: TrialPlan,
    *,
    asked: Ending | None,
    draining: bool,
    policy: FailureSpec,
    endings: Iterable[tuple[str, str]],
) -> Verdict:
    """What becomes of a trial.

    Args:
        record: how its attempt ended, by its own account where it left one.
        trial: as the attempt ran it.
        asked: what the coordinator had asked of this attempt.
        draining: the whole sweep was asked to stop; what is unfinished then waits for its next run.
        endings: reason and outcome of the trial's earlier attempts, oldest first.
    """
    if record.state in ("finished", "diverged"):
        return Verdict(record, record.state)
    if asked is not None:
        record = record.model_copy(
            update={"state": asked.state, "reason": asked.reason, "error": asked.message, "trace": ""}
        )
        if asked.state == "stopped":
            return Verdict(record, "stopped")
    if draining and record.reason in ("stopped", "signal", "lost", "preempted"):
        return Verdict(record, "waiting")
    if tried(endings)[record.reason] < policy.allowed(record.reason):
        if record.reason != NO_MEMORY or divisible(trial):
            return Verdict(record, "waiting", retried=True)
        record = record.model_copy(
            update={"error": f"{record.error} Its micro-batches cannot become smaller, so it is not tried again."}
        )
    return Verdict(record, "failed")


def left_open(record: AttemptRecord, trial: TrialPlan | None) -> TrialState | None:
    """The state of a trial whose attempt ended while nobody looked, where it is not the attempt's own: it may wait."""
    open_ = record.reason in ("lost", "stopped", "preempted") and not (trial and trial.foreign)
    return "waiting" if open_ else None


def tried(endings: Iterable[tuple[str, str]]) -> Counter[str]:
    """Reason -> how often a trial was tried again after it, since it last came to an end."""
    counted: Counter[str] = Counter()
    for reason, outcome in endings:
        if outcome == "retried":
            counted[reason] += 1
        elif outcome not in ("", "waiting"):
            counted.clear()
    return counted


def divided(trial: TrialPlan, endings: Iterable[tuple[str, str]]) -> TrialPlan:
    """The trial with half the micro-batch for each of its attempts that ran out of memory."""
    times = sum(1 for reason, _ in endings if reason == NO_MEMORY)
    before = trial.micro_batch_divisor
    divisor = min(before * 2**times, max(before, *map(_largest, trial.stages)))
    return trial if divisor == before else trial.model_copy(update={"micro_batch_divisor": divisor})


def divisible(trial: TrialPlan) -> bool:
    """Whether a stage of the trial can still train with smaller micro-batches."""
    return any(
        stage.training and micro_batch(stage.training.train, trial.micro_batch_divisor) != _smallest(stage)
        for stage in trial.stages
    )


def _largest(stage: StagePlan) -> int:
    """The largest number that a stage's micro-batch can be divided by."""
    return micro_batch(stage.training.train, 1)[0] if stage.training else 1


def _smallest(stage: StagePlan) -> tuple[int, int]:
    assert stage.training is not None
    return micro_batch(stage.training.train, _largest(stage))


def unrecorded(exited: Exited | None, log: str) -> tuple[str, str]:
    """Reason and message of an attempt that left no record.

    Args:
        exited: what the launcher says; None: its coordinator was gone.
        log: the last lines of its log.
    """
    if exited is None:
        return "lost", "its coordinator ended before it did, and it left no record."
    if exited.reason == "cancelled":
        return "stopped", "it was asked to stop, and left no record."
    if exited.reason == "refused":
        return "refused", exited.words
    if exited.reason == "preempted":
        return "preempted", "its place was taken for other work, and it left no record."
    if exited.reason in ("time-limit", NO_MEMORY):
        return exited.reason, "its scheduler ended it for that, and it left no record. The end of its log is kept."
    if any(words in log for words in _WORDS_OF_NO_MEMORY):
        return NO_MEMORY, "its process ran out of memory and left no record. The end of its log is kept."
    if exited.signal is not None:
        name = signal.Signals(exited.signal).name if exited.signal in set(signal.Signals) else ""
        hint = " That is often the kernel, short of memory." if exited.signal == signal.SIGKILL else ""
        return "signal", f"its process was killed by signal {exited.signal} {name}.{hint} The end of its log is kept."
    if exited.reason == "failed":
        code = f" with code {exited.code}" if exited.code is not None else ""
        return "exit", f"its process ended{code} and left no record. The end of its log is kept."
    return "lost", "its process is gone and left no record. The end of its log is kept."
