"""A trial records what it takes of its machine, between its other points."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.lm.models import load_model, save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning.resolve import plan_data
from prunegpt.points import beating, read_points
from prunegpt.root import Root
from prunegpt.stages import cache, graph
from prunegpt.usage import Usage
from tests.support.running import RunTrials, run_attempt, teachers_first

HALF = "bfloat16"


def test_a_trial_records_what_it_takes(run_trials: RunTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunegpt.trial.beating", partial(beating, every=0.02))
    monkeypatch.setattr("prunegpt.trial.Usage", partial(Usage, every=0.05))
    record = run_trials({"name": "tuned", "stages": ["finetune"]})["tuned"]
    assert record.state == "finished", record.trace
    path = tmp_path / "runs/trials/small/tuned/attempt-1/points.jsonl"
    points, end = read_points(path)
    assert end == path.stat().st_size
    assert len(points) == len(path.read_text().splitlines())  # no line is cut by another thread's
    system = [point for point in points if point.name.startswith("system/")]
    assert {"system/processor_percent", "system/memory_mib"} <= {point.name for point in system}
    assert all(point.value is not None and point.value >= 0 for point in system)
    places = [(point.stage, point.step) for point in points]
    assert places == sorted(places)  # a measurement stands where the trial was
    losses = [point.step for point in points if point.name == "loss"]
    assert losses == sorted(set(losses))


def test_a_record_says_in_what_precision_a_stage_was_computed(run_trials: RunTrials) -> None:
    record = run_trials({"name": "a", "stages": ["finetune"]}, precision="bfloat16")["a"]
    assert {stage.precision for stage in record.stages} == {"bfloat16"}
    assert all(stage.evaluation and "bfloat16" in stage.evaluation.protocol for stage in record.stages)


def test_a_model_that_is_only_run_holds_its_products_once_and_gives_the_same_figures(
    model_folder: Path, text_files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dense model, which is measured and teaches, is stored in bfloat16; the student's last model is measured."""
    stored = tmp_path / "stored"
    save_model(
        load_model(model_folder, dtype="float32", device="cpu"), load_tokenizer(model_folder), stored, dtype=HALF
    )
    base = {
        "model": str(stored),
        "precision": HALF,
        "data": {"files": text_files, "block_size": 32},
        "evaluate": {"max_windows": 4},
        "train": {"max_steps": 2, "per_device_train_batch_size": 2},
    }
    student = {"name": "student", "stages": [{"distill": {"teacher": "dense", "hidden_gain": 0.1}}]}
    products: list[torch.dtype | None] = []

    def loaded(*given: Any, **options: Any) -> Any:
        products.append(options["products"])
        return load_model(*given, **options)

    def run(name: str) -> list[float | None]:
        root = Root(tmp_path / name)
        plan = plan_data({"name": "s", "base": base, "trials": [{"name": "dense"}, student]}, root=root)
        records = [run_attempt(root, trial) for trial in teachers_first(plan)]
        assert [one.state for one in records] == ["finished"] * 2, records[-1].trace or records[0].trace
        return [stage.evaluation.loss for one in records for stage in one.stages if stage.evaluation]

    monkeypatch.setattr(cache, "load_model", loaded)
    once = run("once")
    assert products == [torch.bfloat16, None, torch.bfloat16, torch.bfloat16]  # dense; student, teacher, its result
    monkeypatch.setattr(graph, "narrow_dtype", lambda _: None)
    assert run("whole") == once
    assert set(products[4:]) == {None}
