"""A model that sees: evaluated, pruned, trained and distilled as a language model, saved as the whole it was."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultimodalLM
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.planning.resolve import plan_data
from prunegpt.root import Root
from tests.support.families import tiny_multimodal
from tests.support.running import run_attempt

BESIDE = {
    "preprocessor_config.json": {"image_size": 32},
    "processor_config.json": {"processor_class": "Gemma3Processor"},
}


@pytest.fixture
def whole(model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "whole"
    tokenizer = load_tokenizer(model_folder)
    tiny_multimodal("gemma3", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, content in BESIDE.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def test_the_chain_of_a_trial_keeps_it_whole(whole: Path, text_files: dict[str, str], tmp_path: Path) -> None:
    stages = [
        {"prune": {"method": "magnitude", "sparsity": 0.5}},
        {"finetune": {"train": {"max_steps": 2}}},
        {"distill": {"teacher": {"model": str(whole)}, "hidden_gain": 1.0, "train": {"max_steps": 2}}},
    ]
    base = {"model": str(whole), "data": {"files": text_files, "block_size": 32}, "evaluate": {"split": "validation"}}
    plan = plan_data({"name": "whole", "base": base, "trials": [{"name": "all", "stages": stages}]})
    (trial,) = [trial for trial in plan.trials if not trial.implicit]
    root = Root(tmp_path / "runs")
    for each in sorted(plan.trials, key=lambda trial: not trial.implicit):
        record = run_attempt(root, each)
        assert record.state == "finished", record.error
    came_back(whole, root.stage(trial.key) / "model")


def test_prune_and_eval_take_it(whole: Path, text_files: dict[str, str], tmp_path: Path) -> None:
    out, rest = tmp_path / "out", ["--data", text_files["validation"], "--block-size", "32", "--max-windows", "2"]
    given = [
        "--method",
        "wanda",
        "--sparsity",
        "0.5",
        "--calibration",
        text_files["train"],
        "--calibration-windows",
        "2",
    ]
    for overwrite in ([], ["--overwrite"]):
        run(["prune", str(whole), str(out), *given, *rest, *overwrite, "--root", str(tmp_path / "runs")])
    came_back(whole, out)
    run(["eval", str(out), *rest, "--root", str(tmp_path / "runs")])
    run(["masks", "check", str(out)])


def run(command: list[str]) -> None:
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def came_back(before: Path, after: Path) -> None:
    """Plain transformers loads the same architecture, whose tower is as it was and half of whose layers are zero."""
    first, second = (AutoModelForMultimodalLM.from_pretrained(place) for place in (before, after))
    assert type(second) is type(first)
    changed = set()
    for (name, was), now in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        if not torch.equal(was, now):
            changed.add(name)
    assert changed
    assert not [name for name in changed if "language_model" not in name and "lm_head" not in name]
    projections = [value for name, value in second.state_dict().items() if "language_model" in name and "proj" in name]
    assert all(float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01) for weight in projections)
    for name, content in BESIDE.items():
        assert json.loads((after / name).read_text()) == content
