"""Smaller micro-batches after an out-of-memory: the same training, also from a checkpoint of larger ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.planning.resolve import plan_data
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.training.trainer import JobTrainer
from tests.support.running import run_attempt


def run(home: Path, model: Path, files: dict[str, str], *, divide: int = 1, attempt: int = 1) -> AttemptRecord:
    settings = {
        "model": str(model),
        "data": {"files": files, "block_size": 32},
        "evaluate": {"max_windows": 8},
        "train": {
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.003,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 2,
        },
    }
    root = Root(home / "runs")
    prune = {"sparsity": 0.5, "unit": "steps", "start": 1, "end": 6, "every": 1}
    trial = {"name": "gradual", "stages": [{"finetune": {"prune": prune}}]}
    (plan,) = plan_data({"name": "small", "base": settings, "trials": [trial]}, root=root).trials
    return run_attempt(root, plan.model_copy(update={"micro_batch_divisor": divide}), attempt)


def perplexity(record: AttemptRecord) -> float:
    assert record.state == "finished", record.trace
    evaluation = record.stages[-1].evaluation
    assert evaluation is not None
    assert evaluation.perplexity is not None
    return evaluation.perplexity


def test_divided_training_is_the_same_training(
    still_model: Path, text_files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", still_model, text_files)
    halves = run(tmp_path / "halves", still_model, text_files, divide=2)
    assert halves.stages[-1].steps == whole.stages[-1].steps
    assert halves.stages[-1].train_tokens == whole.stages[-1].train_tokens
    assert perplexity(halves) == pytest.approx(perplexity(whole), rel=1e-4)  # sums are taken in another order
    assert whole.stages[-1].notes == ()
    assert halves.stages[-1].notes[0].startswith("micro-batches of 2 instead of 4, 2 instead of 1")

    begin = JobTrainer.on_step_begin

    def full(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        begin(self, args, state, control, **more)
        if args.per_device_train_batch_size > 2 and state.global_step == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(JobTrainer, "on_step_begin", full)
    first = run(tmp_path / "resumed", still_model, text_files)
    assert (first.state, first.reason) == ("failed", "out-of-memory")
    second = run(tmp_path / "resumed", still_model, text_files, divide=2, attempt=2)
    assert perplexity(second) == pytest.approx(perplexity(whole), rel=1e-4)
    assert second.stages[-1].train_tokens == whole.stages[-1].train_tokens
    points = (tmp_path / "resumed/runs/trials/small/gradual/attempt-2/points.jsonl").read_text().splitlines()
    assert min(point["step"] for point in map(json.loads, points) if point["name"] == "loss") == 5
