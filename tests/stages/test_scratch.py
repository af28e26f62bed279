"""Single gradients, which take more than the model, are in the stage's own folder, counted before, and gone after."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prunegpt.planning.budget import passing_on_disk
from prunegpt.planning.resolve import plan_data
from prunegpt.planning.sources import tensor_shapes, weight_files
from prunegpt.pruning import evidence
from prunegpt.pruning.statistics.layerwise import layer_gradients
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
    sizes: list[float] = []
    there: list[int] = []

    def seen(*given: Any, samples: Path, **options: Any) -> Any:
        assert samples.parent == left.parent
        assert not left.exists()
        for part in layer_gradients(*given, samples=samples, **options):
            files = [file for file in left.parent.rglob("*") if file.is_file()]
            there.append(sum(file.stat().st_size for file in files))
            single = sum(file.stat().st_size for file in files if file.parent == samples)
            sizes.append(single / sum(given[1][name].matrix.numel() for name in part))
            yield part

    monkeypatch.setattr(evidence, "layer_gradients", seen)
    record = run_attempt(root, trial)
    assert record.state == "finished", record.trace
    assert not left.parent.exists()
    assert sizes
    assert set(sizes) == {2 * WINDOWS}  # bytes of a weight, of one decoder layer at a time
    shapes = tensor_shapes(model_folder, weight_files(model_folder))
    found = passing_on_disk(trial.stages[1], shapes)
    states = 4 * WINDOWS * 16 * shapes["transformer.ln_f.weight"][0]  # in front of a layer
    layers: Counter[str] = Counter()
    for name, shape in shapes.items():
        if len(shape) > 1 and ".h." in name:
            layers[name.split(".h.")[1][0]] += 2 * WINDOWS * math.prod(shape)
    assert found == len(layers) * states + max(layers.values())
    assert max(there) <= found
