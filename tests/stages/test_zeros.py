"""A base model that is pruned already: its masks are taken over; zeros without masks stay where that is asked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.lm.models import load_model, save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.lm.views import block_matrices
from prunegpt.planning.sources import stored_zeros
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import load_masks, save_masks
from prunegpt.root import Root
from tests.support.running import RunTrials

TRAINING: dict[str, Any] = {
    "finetune": {},
    "distill": {},
    "gradual": {"prune": {"sparsity": 0.6, "unit": "steps", "start": 1, "end": 4, "every": 1}},
    "wanda": {
        "prune": {
            "method": "wanda",
            "sparsity": 0.6,
            "unit": "steps",
            "start": 1,
            "end": 4,
            "every": 1,
            "calibration": {"windows": 2, "length": 16},
        }
    },
}


@pytest.fixture
def half(model_folder: Path, tmp_path: Path) -> Path:
    """A model whose layers are half zero, without masks."""
    model = load_model(model_folder, dtype="float32", device="cpu")
    masks = {}
    with torch.no_grad():
        for name, view in block_matrices(model).items():
            kept = torch.arange(view.matrix.numel()).view(view.matrix.shape) % 2 == 0  # [out, in]
            view.matrix.mul_(kept)
            masks[name] = Mask(kept)
    save_model(model, load_tokenizer(model_folder), tmp_path / "half")
    save_masks(masks, tmp_path / "masks.safetensors", method="magnitude", target=0.5)
    return tmp_path / "half"


def trained(kind: str, teacher: Path, **fields: Any) -> dict[str, Any]:
    stage = {**TRAINING[kind], **({"teacher": {"model": str(teacher)}} if kind == "distill" else {}), **fields}
    return {"name": "trial", "stages": [{"distill" if kind == "distill" else "finetune": stage}]}


def zeros(tmp_path: Path, record: Any) -> float:
    """The share of the first zeros that are zero still in the published model."""
    folder = Root(tmp_path / "runs").stage(record.stages[-1].key) / "model"
    after = block_matrices(load_model(folder, dtype="float32", device="cpu"))
    first = load_masks(tmp_path / "masks.safetensors").masks
    still = sum(int((after[name].matrix[~mask.kept] == 0).sum()) for name, mask in first.items())
    return still / sum(mask.pruned for mask in first.values())


@pytest.mark.parametrize("kind", TRAINING)
def test_masks_beside_a_model_are_taken_over(
    run_trials: RunTrials, half: Path, model_folder: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copy(tmp_path / "masks.safetensors", half)
    record = run_trials(trained(kind, model_folder), model=str(half))["trial"]
    assert record.state == "finished", record.trace
    assert record.stages[0].sparsity is not None
    assert record.stages[0].sparsity.pruned == pytest.approx(0.5, abs=1e-3)
    assert zeros(tmp_path, record) == 1.0


@pytest.mark.parametrize("kind", TRAINING)
def test_zeros_without_masks_stay_where_that_is_asked_for(
    run_trials: RunTrials, half: Path, model_folder: Path, tmp_path: Path, kind: str
) -> None:
    record = run_trials(trained(kind, model_folder, keep_zeros=True), model=str(half))["trial"]
    assert record.state == "finished", record.trace
    assert zeros(tmp_path, record) == 1.0


def test_zeros_without_masks_are_filled_by_training_and_the_check_says_so(
    run_trials: RunTrials, half: Path, tmp_path: Path, text_files: dict[str, str]
) -> None:
    record = run_trials(trained("finetune", half), model=str(half))["trial"]
    assert zeros(tmp_path, record) < 0.01
    notes = {}
    for name, stage in (("filled", {}), ("kept", {"keep_zeros": True})):
        spec = {
            "name": name,
            "base": {"model": str(half), "data": {"files": text_files, "block_size": 32}},
            "trials": [{"name": "a", "stages": [{"finetune": stage}]}],
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(spec))
        shown = CliRunner().invoke(
            app, ["sweep", "check", str(tmp_path / f"{name}.yaml"), "--root", str(tmp_path / "runs"), "--json"]
        )
        assert shown.exit_code == 0, shown.output
        notes[name] = json.loads(shown.stdout)["notes"]
    assert notes["kept"] == []
    (note,) = notes["filled"]
    assert "about 50.0% of the weights in the layers" in note
    assert "keep_zeros: true" in note


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_zeros_of_stored_weights_are_counted_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.ones(4, 6, dtype=dtype)
    weight[0], weight[1] = 0.0, -0.0
    tensors = {
        "h.0.a.weight": weight,
        "h.1.a.weight": torch.ones(100, 6, dtype=dtype),  # of which the first 64 rows are looked at
        "h.0.a.bias": torch.zeros(4, 6, dtype=dtype),
        "h.0.b.weight": torch.zeros(6, dtype=dtype),
        "wte.weight": torch.zeros(4, 6, dtype=dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert stored_zeros(tmp_path) == 12 / (4 * 6 + 64 * 6)


def test_masks_that_do_not_fit_their_model_are_refused(run_trials: RunTrials, half: Path, tmp_path: Path) -> None:
    first = load_masks(tmp_path / "masks.safetensors").masks
    masks = {name: Mask(mask.kept.logical_not()) for name, mask in first.items()}
    save_masks(masks, half / "masks.safetensors", method="magnitude")
    record = run_trials(trained("finetune", half), model=str(half))["trial"]
    assert record.state == "failed"
    assert "under its mask" in record.error


def test_a_constant_modifier_keeps_the_zeros(run_trials: RunTrials, half: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "constant.yaml"
    epochs, constant = "!EpochRangeModifier {end_epoch: 1}", "!ConstantPruningModifier {params: __ALL__}"
    recipe.write_text(f"modifiers: [{epochs}, {constant}]")
    record = run_trials({"name": "trial", "stages": [{"finetune": {"recipe": str(recipe)}}]}, model=str(half))["trial"]
    assert record.state == "finished", record.trace
    assert zeros(tmp_path, record) == 1.0
