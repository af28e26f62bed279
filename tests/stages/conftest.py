"""Runs the trials of a spec in this process, in order, without coordinator or store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.planning.resolve import plan_data
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.trial import run_trial
from tests.e2e.conftest import model_folder, text_files

__all__ = ["model_folder", "text_files"]

RunTrials = Callable[..., dict[str, AttemptRecord]]

torch.set_num_threads(1)


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
        ready = sorted(plan.trials, key=lambda trial: len(trial.needs))
        records = {}
        for trial in ready:
            folder = root.attempt(trial.sweep, trial.name, attempt)
            folder.mkdir(parents=True)
            (folder / "trial.json").write_text(trial.model_dump_json(), encoding="utf-8")
            records[trial.name] = run_trial(folder)
        return records

    return run
