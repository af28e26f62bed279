"""A trial records what it takes of its machine, between its other points."""

from functools import partial
from pathlib import Path

import pytest

from prunegpt.points import beating, read_points
from prunegpt.usage import Usage
from tests.support.running import RunTrials


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
