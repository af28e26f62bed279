"""Runs a trial in a child process that is left alone, asked to stop, or killed at a step, and run again."""

import gc
import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import sleep
from typing import Any, Literal

from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from tests.support.running import write_attempt

Way = Literal["undisturbed", "stopped", "killed"]


@dataclass(frozen=True)
class Result:
    """What a trial came to, without what may differ: times, attempts, and folders."""

    record: AttemptRecord
    files: Mapping[str, str]  # below the stages -> hash: weights, masks, jobs and losses of windows
    evaluations: tuple[Mapping[str, Any], ...]  # of each stage
    stages: tuple[Mapping[str, Any], ...]


def run(plans: list[TrialPlan], root: Root, way: Way, step: int) -> Result:
    """Runs trials in order, the last of them disturbed at an optimizer step, and then again.

    Args:
        plans: teachers first.
        root: new, or with what is shared computed.
        way: what happens at `step`.
        step: counted from 1, over all stages that train.
    """
    *teachers, trial = plans
    for plan in teachers:
        if not root.is_measured(plan.key, plan.evaluation_key):
            _child(root, plan, 1, "undisturbed", 0)
    disturbed = _child(root, trial, 1, way, step)
    if way != "undisturbed":
        assert (disturbed is None) is (way == "killed")
        assert disturbed is None or disturbed.state == "stopped", disturbed.trace
        disturbed = _child(root, trial, 2, "undisturbed", 0)
    assert disturbed is not None
    return _result(root, disturbed)


def _child(root: Root, plan: TrialPlan, attempt: int, way: Way, step: int) -> AttemptRecord | None:
    """The record of an attempt that is run in a fork of this process; None where it was killed."""
    folder = write_attempt(root, plan, attempt)
    pid = os.fork()
    if pid == 0:
        try:
            gc.freeze()  # what the tests hold is not looked through at every collection
            sys.stdout = sys.stderr = (folder / "log.txt").open("a", buffering=1)
            _disturb(way, step)
            from prunegpt.trial import run_trial

            run_trial(folder)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    if way == "killed":
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (folder / "log.txt").read_text(encoding="utf-8")
        return None
    record: AttemptRecord = AttemptRecord.read(folder / "record.json")
    return record


def _disturb(way: Way, step: int) -> None:
    """Sends this process a signal at the end of an optimizer step, counted over all stages that train."""
    from prunegpt.training.trainer import JobTrainer

    if way == "undisturbed":
        return
    end, steps = JobTrainer.on_step_end, count(1)

    def on_step_end(self: JobTrainer, args: Any, state: Any, control: Any, **more: Any) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL if way == "killed" else signal.SIGTERM)
            while not self.stop():  # another thread may have taken the signal: this one hears of it a moment later
                sleep(0.001)
        end(self, args, state, control, **more)

    JobTrainer.on_step_end = on_step_end  # type: ignore[method-assign]


_COMPARED = ("*.safetensors", "windows.npy", "job.json", "config.json")
_TIMES = {"seconds", "versions", "device", "threads", "layers", "peak_memory"}  # rows of layers have times


def _result(root: Root, record: AttemptRecord) -> Result:
    files: dict[str, str] = {}
    evaluations: list[dict[str, Any]] = []
    stages: list[dict[str, Any]] = []
    for stage in record.stages:
        folder = root.stage(stage.key)
        for pattern in _COMPARED:
            for file in sorted(folder.rglob(pattern)):
                name = f"{stage.key}/{file.relative_to(folder)}"
                files[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        evaluations += [_timeless(file) for file in sorted(folder.glob("evaluations/*/evaluation.json"))]
        stages.append(_timeless(folder / "stage.json"))
    return Result(record, files, tuple(evaluations), tuple(stages))


def _timeless(file: Path) -> dict[str, Any]:
    stored = json.loads(file.read_text(encoding="utf-8"))
    return {name: value for name, value in stored.items() if name not in _TIMES}


def job_of(root: Root, key: str) -> dict[str, Any]:
    """The job that a training stage was published with."""
    found: dict[str, Any] = json.loads((root.stage(key) / "job.json").read_text(encoding="utf-8"))
    return found
