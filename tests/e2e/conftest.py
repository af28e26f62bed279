"""A model folder, text files and a spec small enough to train in a second, and ways to run the command line on them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of two blocks with the built-in tokeniser, as an ordinary transformers folder."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny", layers=2)


def make_model(folder: Path, *, layers: int, width: int = 32, positions: int = 64) -> Path:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from prunegpt.lm.models import load_tokenizer, save_model

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=1024, n_positions=positions, n_embd=width, n_layer=layers, n_head=2, bos_token_id=0, eos_token_id=0
    )
    save_model(GPT2LMHeadModel(config), load_tokenizer("builtin:tiny-gpt2"), folder)
    return folder


@pytest.fixture(scope="session")
def text_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two small text files: split -> path."""
    from prunegpt.builtin.text import rows

    folder = tmp_path_factory.mktemp("text")
    files = {}
    for split, count in (("train", 300), ("validation", 60)):
        path = folder / f"{split}.txt"
        lines = [line for row in rows(split) for line in row.splitlines()][:count]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[split] = str(path)
    return files


@pytest.fixture
def spec(model_folder: Path, text_files: dict[str, str]) -> dict[str, Any]:
    """A sweep of every kind of stage, as plain data."""
    gradual = {"sparsity": 0.8, "unit": "steps", "start": 2, "end": 6, "every": 1}
    return {
        "name": "small",
        "base": {
            "model": {"source": str(model_folder), "label": "tiny"},
            "data": {"files": text_files, "block_size": 32},
            "train": {"max_steps": 10, "per_device_train_batch_size": 4, "learning_rate": 0.003, "logging_steps": 2},
        },
        "trials": [
            {"name": "zero-shot"},
            {"name": "finetuned", "stages": ["finetune"]},
            {"name": "pruned", "stages": ["finetune", {"prune": {"sparsity": 0.5}}]},
            {"name": "gradual", "stages": [{"finetune": {"prune": gradual}}]},
            {"name": "distilled", "stages": [{"distill": {"teacher": "finetuned", "prune": gradual}}]},
        ],
        "tables": [
            {
                "title": "Small",
                "rows": ["*"],
                "columns": ["trial", "model", "sparsity", "perplexity", "distilled", "teacher", "layer"],
            }
        ],
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command line in a process of its own, in an empty folder, with its root below it."""

    def call(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "prunegpt", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PRUNEGPT_ROOT": str(tmp_path / "runs"), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if check and done.returncode:
            pytest.fail(f"prunegpt {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return call


def write_spec(path: Path, spec: dict[str, Any]) -> str:
    """JSON is YAML."""
    path.write_text(json.dumps(spec), encoding="utf-8")
    return str(path)


def status(run: Run, name: str) -> dict[str, dict[str, Any]]:
    """Trial name -> what `sweep status --json` says of it."""
    return {trial["name"]: trial for trial in json.loads(run("sweep", "status", name, "--json").stdout)["trials"]}
