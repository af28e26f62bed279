"""Stages in a chain: what each kind of config does to a real, small model."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunegpt.errors import ModelError
from prunegpt.planning.inputs import Inputs
from prunegpt.points import Point
from prunegpt.pruning.masks import load_masks
from prunegpt.pruning.oneshot import prune_oneshot
from prunegpt.records import CALIBRATED, LAYERS_PRUNED, TOTAL_STEPS
from prunegpt.root import Root, sha256
from prunegpt.spec.schema import ModelSpec
from prunegpt.stages import cache
from prunegpt.sweep.live import eta_of
from prunegpt.usage import peak
from tests.support.running import RunTrials
from tests.support.small import make_model

GRADUAL = {"sparsity": 0.75, "unit": "steps", "start": 1, "end": 4, "every": 1}
CALIBRATION = {"windows": 4, "length": 32}
FINETUNED = {"name": "finetuned", "stages": ["finetune"]}


def points(folder: Path, trial: str) -> list[dict[str, Any]]:
    path = folder / "runs" / "trials" / "small" / trial / "attempt-1" / "points.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "prune",
    [
        {"method": "magnitude", "sparsity": 0.5},
        {"method": "magnitude", "sparsity": 0.5, "allocation": "global"},
        {"method": "random", "sparsity": 0.5, "pattern": "[4, 4]"},
        {"method": "wanda", "pattern": "2:4"},
        {"method": "taylor", "sparsity": 0.5},
        {"method": "sparsegpt", "sparsity": 0.5},
        {"method": "sparsegpt", "pattern": "2:4", "propagate": False},
        {"method": "admm", "sparsity": 0.5},
        {"method": "obert", "sparsity": 0.5},
        {"method": "wanda", "sparsity": 0.5, "allocation": "owl", "options": {"limit": 0.1}},
        {"method": "magnitude", "sparsity": 0.5, "layers": [1]},
        {"method": "magnitude", "allocation": {"*.mlp.c_fc": 0.75, "*": 0.25}},
        {
            "method": "magnitude",
            "sparsity": 0.5,
            "allocation": "sensitivity",
            "curves": {"0": [[0.4, 0.1], [0.8, 9.0]], "1": [[0.4, 0.1], [0.8, 0.2]]},
        },
    ],
    ids=lambda prune: "-".join(str(value) for value in prune.values())[:40],
)
def test_one_shot_pruning(run_trials: RunTrials, prune: dict[str, Any]) -> None:
    record = run_trials({"name": "pruned", "stages": [{"prune": {**prune, "calibration": CALIBRATION}}]})["pruned"]
    assert record.state == "finished", record.trace
    stage = record.stages[-1]
    assert (stage.peak_memory is None) == (peak(torch.device("cpu")) is None)
    assert stage.bytes is not None
    assert stage.peak_memory is None or stage.peak_memory > stage.bytes
    assert stage.sparsity is not None
    if "sparsity" in prune or "pattern" in prune:
        assert stage.sparsity.pruned == pytest.approx(0.5, abs=0.02)
    assert stage.sparsity.layers == tuple(prune.get("layers", (0, 1)))
    assert stage.evaluation is not None
    assert stage.evaluation.perplexity is not None
    assert len(stage.layers) == len(stage.sparsity.by_tensor)
    if prune.get("allocation") == "sensitivity":
        zeros = stage.sparsity.by_tensor
        assert zeros["transformer.h.0.mlp.c_fc.weight"] < zeros["transformer.h.1.mlp.c_fc.weight"]


@pytest.mark.parametrize(
    "prune",
    [
        {"method": "magnitude", "schedule": "linear"},
        {"method": "magnitude", "schedule": "constant"},
        {"method": "magnitude", "allocation": "global"},
        {"method": "wanda"},
        {"method": "movement"},
        {"method": "taylor"},
        {"method": "sparsegpt"},
        {"method": "magnitude", "schedule": "acdc", "every": 1},
    ],
    ids=lambda prune: "-".join(str(value) for value in prune.values()),
)
def test_pruning_while_training(run_trials: RunTrials, tmp_path: Path, prune: dict[str, Any]) -> None:
    spec = {**GRADUAL, "calibration": CALIBRATION, **prune}
    record = run_trials({"name": "gradual", "stages": [{"finetune": {"prune": spec}}]})["gradual"]
    assert record.state == "finished", record.trace
    assert record.stages[-1].sparsity is not None
    assert record.stages[-1].sparsity.pruned == pytest.approx(0.75, abs=0.01)
    names = {point["name"] for point in points(tmp_path, "gradual")}
    assert {"loss", "ce", "learning_rate", "sparsity", "sparsity_target", "perplexity"} <= names


@pytest.mark.parametrize(
    "distill",
    [
        {},
        {"loss": "reverse_kl"},
        {"loss": "jensen_shannon"},
        {"loss": "top_k", "options": {"k": 8}},
        {"cache": {"k": 16}, "temperature": 1.0},
        {"hidden_gain": 1.0},
        {"attention_gain": 1.0},
        {"prune": GRADUAL},
    ],
    ids=lambda distill: "-".join(distill) or "forward_kl",
)
def test_distillation(run_trials: RunTrials, tmp_path: Path, distill: dict[str, Any]) -> None:
    student = {"name": "student", "stages": [{"distill": {"teacher": "finetuned", **distill}}]}
    records = run_trials(FINETUNED, student)
    assert records["student"].state == "finished", records["student"].trace
    curves = {point["name"] for point in points(tmp_path, "student")}
    assert {"ce", "kd"} <= curves
    assert ("hidden" in curves) == ("hidden_gain" in distill)
    assert ("attention" in curves) == ("attention_gain" in distill)


def test_hardness_zero_is_plain_fine_tuning_bit_for_bit(run_trials: RunTrials, tmp_path: Path) -> None:
    student = {"name": "student", "stages": [{"distill": {"teacher": "finetuned", "hardness": 0.0}}]}
    records = run_trials(FINETUNED, student)
    root, cpu = Root(tmp_path / "runs"), torch.device("cpu")
    keys = [record.stages[-1].key for record in records.values()]
    states = [cache.load(root, key, ModelSpec(source="unused"), Inputs(None), device=cpu) for key in keys]
    first, second = (dict(state.model.named_parameters()) for state in states)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_published_model_is_verified_once_in_a_process_and_again_where_it_changed(
    run_trials: RunTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = make_model(tmp_path / "large", layers=2, width=64)  # small files are read each time
    key = run_trials(FINETUNED, model=str(large))["finetuned"].stages[-1].key
    root, cpu, read = Root(tmp_path / "runs"), torch.device("cpu"), Counter[str]()

    def counting(path: Path) -> str:
        read[path.name] += 1
        return sha256(path)

    monkeypatch.setattr("prunegpt.planning.fingerprint.SETTLED", 0)  # as if it had been written some time ago
    monkeypatch.setattr("prunegpt.planning.fingerprint.sha256", counting)
    monkeypatch.setattr("prunegpt.lm.models.check_causal", lambda *_: pytest.fail("what we published was looked at"))
    for _ in range(2):
        cache.load(root, key, ModelSpec(source="unused"), Inputs(None), device=cpu)
    assert read == {"model.safetensors": 1}
    weights = root.stage(key) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelError, match=r"must be as it was published; model/model.safetensors of .* is changed"):
        cache.load(root, key, ModelSpec(source="unused"), Inputs(None), device=cpu)


@pytest.mark.parametrize("keep", [True, False])
def test_recovery_keeps_masks_unless_told_otherwise(run_trials: RunTrials, tmp_path: Path, keep: bool) -> None:
    stages = [{"prune": {"sparsity": 0.5}}, {"finetune": {"keep_masks": keep}}]
    record = run_trials({"name": "recovered", "stages": stages})["recovered"]
    zeros = [stage.sparsity.pruned for stage in record.stages[1:] if stage.sparsity]
    assert zeros[0] == pytest.approx(0.5, abs=1e-3)
    assert zeros[1] == pytest.approx(0.5 if keep else 0.0, abs=1e-3)
    masks = tmp_path / "runs" / "stages" / record.stages[-1].key / "masks.safetensors"
    assert masks.exists() == keep
    if keep:
        assert load_masks(masks).target == 0.5


def test_a_diverged_trial_keeps_its_last_finite_perplexity(run_trials: RunTrials) -> None:
    trial = {"name": "wild", "stages": ["finetune"]}
    record = run_trials(trial, train={"learning_rate": 1e9, "max_grad_norm": 0.0, "optim": "sgd"})["wild"]
    assert record.state == "diverged"
    assert "step" in record.error
    assert [stage.kind for stage in record.stages] == ["load"]
    assert record.stages[0].evaluation is not None
    assert record.stages[0].evaluation.perplexity is not None


def test_windows_are_those_of_the_perplexity(run_trials: RunTrials, tmp_path: Path) -> None:
    record = run_trials(FINETUNED)["finetuned"]
    stage = record.stages[-1]
    assert stage.evaluation is not None
    windows = np.load(Root(tmp_path / "runs").evaluation(stage.key, stage.evaluation.key) / "windows.npy")
    assert windows.shape == (4, 2)
    assert math.exp(windows[:, 0].sum() / windows[:, 1].sum()) == pytest.approx(stage.evaluation.perplexity, rel=1e-12)


def test_a_second_attempt_takes_everything_from_the_cache(run_trials: RunTrials) -> None:
    first = run_trials(FINETUNED)["finetuned"]
    second = run_trials(FINETUNED, attempt=2)["finetuned"]
    assert all(stage.cached for stage in second.stages)
    assert [stage.evaluation for stage in second.stages] == [stage.evaluation for stage in first.stages]


def test_a_drifted_mask_fails_the_trial_with_the_tensors_name(
    run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunegpt.pruning.enforce import Enforcer

    monkeypatch.setattr(Enforcer, "mask_weights", lambda self: None)
    monkeypatch.setattr(Enforcer, "mask_gradients", lambda self: None)  # else nothing would move the weights
    record = run_trials({"name": "gradual", "stages": [{"finetune": {"prune": GRADUAL}}]})["gradual"]
    assert record.state == "failed"
    assert "nonzero weights under its mask" in record.error
    assert "transformer.h." in record.error


def test_a_failure_is_a_record_with_its_trace(run_trials: RunTrials) -> None:
    trial = {"name": "late", "stages": [{"finetune": {"prune": {**GRADUAL, "unit": "epochs", "start": 0, "end": 50}}}]}
    record = run_trials(trial)["late"]
    assert (record.state, record.reason) == ("failed", "exception")
    assert "pruning must end before training does" in record.error
    assert "Traceback" in record.trace


def test_every_checkpoint_carries_its_masks_with_a_hash(run_trials: RunTrials, tmp_path: Path) -> None:
    train = {"save_strategy": "steps", "save_steps": 2}
    stage = {"finetune": {"prune": GRADUAL, "keep_checkpoints": True}}
    record = run_trials({"name": "gradual", "stages": [stage]}, train=train)["gradual"]
    checkpoints = sorted((tmp_path / "runs" / "stages" / record.stages[-1].key / "checkpoints").iterdir())
    assert [folder.name for folder in checkpoints] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    files = [load_masks(folder / "masks.safetensors") for folder in checkpoints]
    assert [file.step for file in files] == [2, 4, 6]
    assert files[0].achieved < files[1].achieved <= files[2].achieved == pytest.approx(0.75, abs=0.01)


def test_masks_are_checked_at_evaluations_in_mid_training(
    run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunegpt.pruning.enforce import Enforcer

    kept, calls = Enforcer.mask_weights, []

    def forgetful(self: Enforcer) -> None:
        calls.append(None)
        if len(calls) < 12:
            kept(self)

    monkeypatch.setattr(Enforcer, "mask_weights", forgetful)
    monkeypatch.setattr(Enforcer, "mask_gradients", lambda self: None)
    stages = [{"prune": {"sparsity": 0.5}}, "finetune"]
    record = run_trials(
        {"name": "kept", "stages": stages}, train={"max_steps": 30, "eval_strategy": "steps", "eval_steps": 5}
    )
    assert record["kept"].state == "failed"
    assert "nonzero weights under its mask" in record["kept"].error
    assert len(calls) < 20  # long before the end


def test_another_method_on_the_same_statistics_does_not_run_the_model(
    run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pruning(method: str, **more: Any) -> dict[str, Any]:
        prune = {"method": method, "propagate": False, "calibration": CALIBRATION, **more}
        return {"name": method, "stages": [{"prune": prune}]}

    assert run_trials(pruning("wanda", sparsity=0.5))["wanda"].state == "finished"

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was run again")

    monkeypatch.setattr("prunegpt.pruning.statistics.store.block_statistics", refused)
    records = run_trials(pruning("sparsegpt", pattern="2:4"), pruning("admm", sparsity=0.7))
    assert {record.state for record in records.values()} == {"finished"}


def test_one_shot_pruning_that_was_stopped_resumes_and_reports_its_progress(
    run_trials: RunTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = {"name": "t", "stages": [{"prune": {"method": "sparsegpt", "sparsity": 0.5, "calibration": CALIBRATION}}]}
    asked: list[bool] = []

    def stopping(*given: Any, **more: Any) -> Any:
        return prune_oneshot(*given, **{**more, "stop": lambda: asked.append(True) or len(asked) == 3})

    with monkeypatch.context() as patched:
        patched.setattr("prunegpt.stages.prune.prune_oneshot", stopping)
        record = run_trials(trial)["t"]
    assert (record.state, record.error) == ("stopped", "stopped after 3 of 8 matrices; those are kept")
    record = run_trials(trial, attempt=2)["t"]
    assert record.state == "finished", record.trace
    assert len(record.stages[-1].layers) == 8
    assert not (tmp_path / "runs" / "work" / record.stages[-1].key).exists()
    lines = (tmp_path / "runs" / "trials" / "small" / "t" / "attempt-2" / "points.jsonl").read_text().splitlines()
    curve = [Point.model_validate_json(line) for line in lines]
    assert [(one.step, one.value) for one in curve if one.name == TOTAL_STEPS] == [(3, 8)]
    assert [one.value for one in curve if one.name == LAYERS_PRUNED] == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("prune", [{"method": "wanda", "propagate": False}, {"method": "taylor"}])
def test_a_calibration_that_comes_first_reports_its_progress(run_trials: RunTrials, tmp_path: Path, prune: Any) -> None:
    run_trials({"name": "t", "stages": [{"prune": {**prune, "sparsity": 0.5, "calibration": CALIBRATION}}]})
    curve = [Point.model_validate(point) for point in points(tmp_path, "t")]
    shares = [(one.step, one.value) for one in curve if one.name == CALIBRATED]
    assert shares[-1] == (0, 1.0)
    assert len(shares) > 1
    begun = [one for one in curve if one.name == TOTAL_STEPS]
    assert [(one.step, one.value) for one in begun] == [(0, 8), (0, 8)]
    pruned = [one for one in curve if one.name == LAYERS_PRUNED]
    assert shares == sorted(shares)
    assert eta_of(begun[-1], pruned[-1]) == 0
    assert eta_of(begun[-1], pruned[3]) == pytest.approx(pruned[3].time - begun[-1].time)
