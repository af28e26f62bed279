"""Mixtures of experts through whole trials: one-shot, gradual, distilled, and trained on with masks that hold."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.lm.models import load_model, save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.lm.views import block_matrices
from prunegpt.pruning.masks import check, load_masks
from prunegpt.root import Root
from tests.support.families import tiny
from tests.support.running import RunTrials

CALIBRATION = {"windows": 4, "length": 16}
GRADUAL = {"sparsity": 0.5, "unit": "steps", "start": 1, "end": 4, "every": 1}
STAGES: dict[str, list[Any]] = {
    "wanda, then training": [{"prune": {"method": "wanda", "sparsity": 0.5, "calibration": CALIBRATION}}, "finetune"],
    "SparseGPT, dense statistics": [
        {"prune": {"method": "sparsegpt", "sparsity": 0.5, "propagate": False, "calibration": CALIBRATION}}
    ],
    "gradual": [{"finetune": {"prune": GRADUAL}}],
    "gradual by movement": [{"finetune": {"prune": {**GRADUAL, "method": "movement"}}}],
    "distilled": [{"distill": {"teacher": "dense", "prune": GRADUAL}}],
}


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_go_through_every_kind_of_stage(run_trials: RunTrials, tmp_path: Path, family: str) -> None:
    folder = tmp_path / family
    save_model(tiny(family, vocab_size=1024), load_tokenizer("builtin:tiny-gpt2"), folder)
    trials = [
        {"name": f"t{index}", "label": kind, "stages": stages} for index, (kind, stages) in enumerate(STAGES.items())
    ]
    for trial in trials:
        del trial["label"]
    records = run_trials({"name": "dense", "stages": []}, *trials, model=str(folder))
    for name, kind in zip((trial["name"] for trial in trials), STAGES, strict=True):
        record = records[name]
        assert record.state == "finished", (kind, record.trace)
        last = record.stages[-1]
        assert last.sparsity is not None
        assert last.sparsity.pruned == pytest.approx(0.5, abs=0.01), kind
        share = last.sparsity.selected / last.sparsity.parameters
        assert 0.5 * share - 0.005 < last.sparsity.overall < 0.5 * share + 0.05, kind  # some biases begin as zeros
        published = Root(tmp_path / "runs").stage(last.key)
        views = block_matrices(load_model(published / "model", dtype="float32", device="cpu"))
        masks = load_masks(published / "masks.safetensors").masks
        check(views, masks)
        assert {name for name in views if views[name].expert is not None} <= masks.keys()
        assert sum(int(torch.count_nonzero(view.matrix == 0)) for view in views.values()) > 0


def test_experts_that_few_tokens_reach_are_reported(run_trials: RunTrials, tmp_path: Path) -> None:
    """In the notes of the stage, once for each kind, with how many there are."""
    folder = tmp_path / "mixtral"
    save_model(tiny("mixtral", vocab_size=1024), load_tokenizer("builtin:tiny-gpt2"), folder)
    few = {"method": "wanda", "sparsity": 0.5, "calibration": {"windows": 1, "length": 2}}
    stage = run_trials({"name": "few", "stages": [{"prune": few}]}, model=str(folder))["few"].stages[-1]
    rows = {row["name"]: row["notes"] for row in stage.layers if row["notes"]}
    unseen = [name for name, notes in rows.items() if "by magnitude" in notes[0]]
    assert unseen, "two tokens do not reach all experts"
    (note,) = (note for note in stage.notes if "by magnitude" in note)
    assert note.startswith(f"{unseen[0]}: no calibration token was routed to this expert")
    assert note.endswith(f"and {len(unseen) - 1} more like it")
