"""The trial of an agent's run: its teachers first where nobody has made them, then itself; the store has all of it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prunegpt.cli.options import number, say

if TYPE_CHECKING:
    from prunegpt.records import AttemptRecord
    from prunegpt.root import Root
    from prunegpt.spec.plan import SweepPlan, TrialPlan


@contextmanager
def failing(root: "Root") -> Iterator[None]:
    """Lets the server know of a run that fails before it is a trial, so that it is not given out again."""
    from prunegpt.errors import PruneGPTError
    from prunegpt.root import write_text
    from prunegpt.tracking.claims import Claim, claim_path, read_claim

    try:
        yield
    except PruneGPTError as error:
        run = os.environ.get("WANDB_RUN_ID", "")
        if run:
            before = read_claim(root, run) or Claim(run=run)
            failed = before.model_copy(update={"state": "failed", "error": str(error)})
            write_text(claim_path(root, run), failed.model_dump_json(indent=2) + "\n")
        raise


def run_for_agent(root: "Root", plan: "SweepPlan", trial: "TrialPlan") -> int:
    """Runs a trial, which is in the store while it runs; gives the exit code: 0 where it finished.

    A stage that another agent computes is waited for, and so is a teacher.
    """
    from prunegpt.root import write_text
    from prunegpt.tracking.claims import Claim, claim_path
    from prunegpt.tracking.summary import summary_of

    run = os.environ.get("WANDB_RUN_ID", "")
    told = {"run": run, "sweep": os.environ.get("WANDB_SWEEP_ID", ""), "trial": f"{trial.sweep}/{trial.name}"}

    def tell(**more: object) -> None:
        told.update(more)  # type: ignore[arg-type]
        if run:
            write_text(claim_path(root, run), Claim.model_validate(told).model_dump_json(indent=2) + "\n")

    tell()
    problem = _teach(root, plan, trial)
    if problem:
        say(f"{trial.name}: {problem}")
        tell(state="failed", error=problem)
        return 1
    record, folder = _run(root, plan, trial, lambda folder: tell(folder=str(folder.relative_to(root.path))))
    metrics = summary_of(record.stages) if record.state == "finished" else {}
    tell(state=record.state, error=record.error, metrics=metrics, folder=str(folder.relative_to(root.path)))
    for stage in record.stages:
        perplexity = stage.evaluation.perplexity if stage.evaluation else None
        say(f"{trial.name}: {stage.kind}{' (cached)' if stage.cached else ''}: perplexity {number(perplexity)}")
    if record.state != "finished":
        say(f"{trial.name}: {record.state}: {record.error} The log is {folder / 'log.txt'}.")
    return 0 if record.state == "finished" else 1


def _teach(root: "Root", plan: "SweepPlan", trial: "TrialPlan") -> str:
    """Runs the teachers that are not there yet, each once, whichever agents want it; what is wrong, if anything is."""
    from filelock import FileLock

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
            record, _ = _run(root, plan, teacher, None)
        if record.state != "finished":
            return f"its teacher {teacher.name} ended as {record.state}: {record.error}"
    return ""


def _run(
    root: "Root", plan: "SweepPlan", trial: "TrialPlan", begun: Callable[[Path], None] | None
) -> "tuple[AttemptRecord, Path]":
    """Runs one trial in a new attempt's folder; the store has it from its start, and follows it to its end.

    Args:
        begun: is told the folder; None for a teacher, which is no run of the agent's.
    """
    from prunegpt.launch.log import LOG
    from prunegpt.launch.worker import logging_to
    from prunegpt.tracking.ingest import Follower, begin
    from prunegpt.tracking.narrate import Narrator
    from prunegpt.trial import run_trial

    attempt = begin(root, plan, trial)
    folder = attempt.folder
    narrator = Narrator(folder) if begun else None
    if begun:
        begun(folder)
    follower = Follower(root, attempt)
    with follower.following() as through, logging_to(folder / LOG):
        record = run_trial(folder, through)
    follower.end(record)
    if narrator:
        narrator.close()
    return record, folder
