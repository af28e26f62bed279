"""The trial of an agent's run: its teachers first where nobody has made them, then itself; the store has all of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunegpt.cli.options import number, say

if TYPE_CHECKING:
    from prunegpt.records import AttemptRecord
    from prunegpt.root import Root
    from prunegpt.spec.plan import SweepPlan, TrialPlan
    from prunegpt.sweep.attempt import Attempt


@contextmanager
def failing(root: "Root") -> Iterator[None]:
    """Lets the server know of a run that fails before it is a trial, so that it is not given out again."""
    from prunegpt.errors import PruneGPTError
    from prunegpt.tracking.claims import claim

    try:
        yield
    except PruneGPTError as error:
        claim(root, state="failed", error=str(error))
        raise


def run_for_agent(root: "Root", plan: "SweepPlan", trial: "TrialPlan") -> int:
    """Runs a trial, which is in the store while it runs; gives the exit code: 0 where it finished.

    A stage that another agent computes is waited for, and so is a teacher.
    """
    from prunegpt.tracking.claims import claim
    from prunegpt.tracking.ingest import begin
    from prunegpt.tracking.run_log import summary_of
    from prunegpt.tracking.tracker import open_attempt

    claim(root, trial=f"{trial.sweep}/{trial.name}", state="running", error="", folder="", metrics={})
    problem = _teach(root, plan, trial)
    if problem:
        say(f"{trial.name}: {problem}")
        claim(root, state="failed", error=problem)
        return 1
    attempt = begin(root, plan, trial)
    claim(root, folder=str(attempt.folder.relative_to(root.path)))
    uploader = open_attempt(attempt.folder)
    record = _run(root, attempt)
    if uploader:
        uploader.close()
    finished = record.state == "finished"
    claim(root, state=record.state, error=record.error, metrics=summary_of(record.stages) if finished else {})
    for stage in record.stages:
        perplexity = stage.evaluation.perplexity if stage.evaluation else None
        say(f"{trial.name}: {stage.kind}{' (cached)' if stage.cached else ''}: perplexity {number(perplexity)}")
    if not finished:
        say(f"{trial.name}: {record.state}: {record.error} The log is {attempt.folder / 'log.txt'}.")
    return 0 if finished else 1


def _teach(root: "Root", plan: "SweepPlan", trial: "TrialPlan") -> str:
    """Runs the teachers that are not there yet, each once, whichever agents want it; what is wrong, if anything is."""
    from filelock import FileLock

    from prunegpt.tracking.ingest import begin

    for key in trial.needs:
        teacher = next((one for one in plan.trials if one.key == key), None)
        if root.is_published(key):
            continue
        if teacher is None:
            return f"it needs the stage {key} as its teacher, which no trial of the spec makes."
        lock = root.path / "wandb" / "locks" / f"{key}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if root.is_published(key):
                continue
            problem = _teach(root, plan, teacher)
            if problem:
                return problem
            say(f"{trial.name}: its teacher {teacher.name} is made first")
            record = _run(root, begin(root, plan, teacher))
        if record.state != "finished":
            return f"its teacher {teacher.name} ended as {record.state}: {record.error}"
    return ""


def _run(root: "Root", attempt: "Attempt") -> "AttemptRecord":
    """Runs a new attempt, which the store follows to its end."""
    from prunegpt.launch.log import LOG
    from prunegpt.launch.worker import logging_to
    from prunegpt.tracking.ingest import Follower
    from prunegpt.trial import run_trial

    follower = Follower(root, attempt)
    with follower.following() as through, logging_to(attempt.folder / LOG):
        record = run_trial(attempt.folder, through, trust_remote_code=True)  # planned here
    follower.end(record)
    return record
