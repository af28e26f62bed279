"""Runs planned trials in this process, without coordinator or store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunegpt.planning.resolve import plan_data
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan, TrialPlan

RunTrials = Callable[..., dict[str, AttemptRecord]]


def write_attempt(root: Root, plan: TrialPlan, number: int = 1) -> Path:
    """The new folder of an attempt, with its trial.json."""
    folder = root.attempt(plan.sweep, plan.name, number)
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(plan.model_dump_json(), encoding="utf-8")
    return folder


def run_attempt(root: Root, plan: TrialPlan, number: int = 1, **options: Any) -> AttemptRecord:
    """One attempt, from its own folder, as a worker runs it; `options` are those of `run_trial`."""
    from prunegpt.trial import run_trial

    return run_trial(write_attempt(root, plan, number), **options)


def teachers_first(plan: SweepPlan) -> list[TrialPlan]:
    return sorted(plan.trials, key=lambda trial: len(trial.needs))


@pytest.fixture
def run_trials(tmp_path: Path, model_folder: Path, text_files: dict[str, str]) -> RunTrials:
    """Takes trials as a spec has them; gives name -> record. `attempt` numbers the attempts."""

    def run(*trials: dict[str, Any], attempt: int = 1, **base: Any) -> dict[str, AttemptRecord]:
        train = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 0.003, "logging_steps": 1}
        data = {"files": text_files, "block_size": 32}
        settings = {"model": str(model_folder), "data": data, "evaluate": {"max_windows": 4}, **base}
        settings["train"] = {**train, **base.get("train", {})}
        root = Root(tmp_path / "runs")
        plan = plan_data({"name": "small", "base": settings, "trials": list(trials)}, root=root)
        return {trial.name: run_attempt(root, trial, attempt) for trial in teachers_first(plan)}

    return run
