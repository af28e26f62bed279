"""A prune stage computes in the dtype that its chain's model is stored in, and publishes it so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from prunegpt.lm.models import load_model
from prunegpt.lm.views import block_matrices
from prunegpt.planning.inputs import Inputs
from prunegpt.planning.sources import stored_kinds, weight_files
from prunegpt.pruning.oneshot import prune_oneshot
from prunegpt.pruning.statistics import collect
from prunegpt.pruning.statistics.activations import WalkError
from prunegpt.root import Root
from prunegpt.stages import cache, prune, text
from tests.support.running import RunTrials
from tests.support.small import Stored

PRUNE: dict[str, Any] = {"method": "sparsegpt", "sparsity": 0.5, "calibration": {"windows": 4, "length": 32}}


def model_of(folder: Path, key: str) -> Path:
    return Root(folder / "runs").stage(key) / "model"


def test_stages_are_published_in_the_dtype_of_the_source_until_one_trains(
    run_trials: RunTrials, stored: Stored, tmp_path: Path
) -> None:
    stages = [{"prune": PRUNE}, {"shrink": {"drop": [0]}}, {"prune": {"sparsity": 0.6}}, "finetune"]
    found = run_trials({"name": "one", "stages": stages}, model=str(stored("bfloat16")))["one"]
    assert found.state == "finished", found.trace
    kinds = [stored_kinds(weight_files(model_of(tmp_path, stage.key))) for stage in found.stages[1:]]
    assert kinds == [{"BF16"}, {"BF16"}, {"BF16"}, {"F32"}]
    assert [stage.stored for stage in found.stages] == ["bfloat16"] * 4 + ["float32"]
    shrunk, pruned = (load_file(weight_files(model_of(tmp_path, one.key))[0]) for one in found.stages[1:3])
    for name, weight in pruned.items():
        before = shrunk.get(name.replace(".h.0.", ".h.1."))
        assert before is not None
        assert torch.equal(before, weight)  # what is left is as it was
    assert found.stages[-1].sparsity is not None
    assert found.stages[-1].sparsity.pruned == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_stage_has_the_bits_of_pruning_in_the_stored_dtype(
    run_trials: RunTrials, stored: Stored, tmp_path: Path, dtype: str
) -> None:
    folder = stored(dtype)
    found = run_trials({"name": "one", "stages": [{"prune": PRUNE}]}, model=str(folder))["one"]
    assert found.state == "finished", found.trace
    trial = cache.read_json(tmp_path / "runs" / "stages" / found.stages[-1].key / "plan.json")
    model = load_model(folder, dtype=dtype, device="cpu")
    spec = cache.StagePlan.model_validate(trial)
    assert spec.prune is not None
    reader = cache.load_tokenizer(folder)
    windows = text.calibration(spec.prune.calibration, reader, Inputs(None), Root(tmp_path / "runs"))
    prune_oneshot(model, block_matrices(model), method="sparsegpt", sparsity=0.5, calibration=windows, seed=spec.seed)
    expected = dict(model.named_parameters())
    with safe_open(weight_files(model_of(tmp_path, spec.key))[0], framework="pt") as published:
        for name in published.keys():  # noqa: SIM118
            assert torch.equal(published.get_tensor(name), expected[name])


def test_a_model_that_is_handed_on_and_not_measured_is_not_widened(
    run_trials: RunTrials, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[torch.dtype, str]] = []

    def noted(*args: Any, **given: Any) -> Any:
        loaded.append((given["dtype"], str(given["device"])))
        return load_model(*args, **given)

    monkeypatch.setattr(cache, "load_model", noted)
    asked = {"max_windows": 2, "after": "last"}
    stages = [{"prune": {"sparsity": 0.3}}, {"prune": PRUNE}]
    found = run_trials({"name": "one", "stages": stages}, model=str(stored("bfloat16")), evaluate=asked)["one"]
    assert found.state == "finished", found.trace
    assert loaded == [(torch.bfloat16, "cpu")] * 3 + [(torch.float32, "cpu")]  # the last one is measured
    assert [bool(stage.evaluation) for stage in found.stages] == [False, False, True]


@pytest.mark.parametrize("stream", ["auto", True])
def test_layers_that_cannot_be_run_by_themselves_are_streamed_only_where_asked(
    run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch, stream: Any
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise WalkError("they cannot")

    monkeypatch.setattr(collect, "capture", refused)
    monkeypatch.setattr(prune, "streams", lambda *_: True)
    found = run_trials({"name": "one", "stages": [{"prune": {**PRUNE, "stream": stream}}]})["one"]
    assert found.state == ("finished" if stream == "auto" else "failed")
    assert "cannot be run by themselves" in found.trace or stream == "auto"
