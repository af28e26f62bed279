"""Single gradients, which take more than the model, are in the stage's own folder, counted before, and gone after."""

from pathlib import Path
from typing import Any

import pytest

from prunegpt.lm.models import load_model
from prunegpt.lm.views import block_matrices
from prunegpt.planning.budget import models_on_disk
from prunegpt.planning.resolve import plan_data
from prunegpt.pruning import evidence
from prunegpt.pruning.statistics.gradients import gradient_statistics
from prunegpt.registry import GRADIENTS, SOLVERS
from prunegpt.root import Root
from tests.support.running import run_attempt

WINDOWS = 6
SINGLE = [name for name in SOLVERS.names() if SOLVERS.entry(name).needs & GRADIENTS]
GRADUAL = {"initial": 0.2, "unit": "steps", "start": 1, "end": 2, "every": 1}


@pytest.mark.parametrize("method", SINGLE)
@pytest.mark.parametrize("trains", [False, True])
def test_single_gradients_are_in_the_work_folder(
    method: str,
    trains: bool,
    model_folder: Path,
    text_files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruning = {"method": method, "sparsity": 0.5, "calibration": {"windows": WINDOWS, "length": 16}}
    stage = {"finetune": {"prune": {**pruning, **GRADUAL}}} if trains else {"prune": pruning}
    base = {
        "model": str(model_folder),
        "data": {"files": text_files, "block_size": 32},
        "evaluate": {"max_windows": 2},
        "train": {"max_steps": 4, "per_device_train_batch_size": 2},
    }
    root = Root(tmp_path / "runs")
    (trial,) = plan_data({"name": "s", "base": base, "trials": [{"name": "a", "stages": [stage]}]}, root=root).trials
    left = root.work(trial.key) / "samples" / "left"  # by an attempt that was killed
    left.parent.mkdir(parents=True)
    left.touch()
    sizes: list[int] = []

    def seen(*given: Any, samples: Path, **options: Any) -> Any:
        assert samples == left.parent
        assert not left.exists()
        found = gradient_statistics(*given, samples=samples, **options)
        sizes.append(sum(file.stat().st_size for file in samples.iterdir()))
        return found

    monkeypatch.setattr(evidence, "gradient_statistics", seen)
    record = run_attempt(root, trial)
    assert record.state == "finished", record.trace
    assert not left.parent.exists()
    model = load_model(model_folder, dtype="float32", device="cpu")
    weights = sum(view.matrix.numel() for view in block_matrices(model).values())
    assert sizes
    assert all(size == pytest.approx(2 * WINDOWS * weights, rel=0.1) for size in sizes)
    assert max(sizes) <= 4 * model.num_parameters() * (models_on_disk(trial.stages[1]) - (6 if trains else 2))
