"""A sensitivity sweep is measured first, then the budget is spent by its curves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prunegpt.pruning.allocation.sensitivity import sensitivity
from tests.support.small import Run, status, write_spec


def test_the_budget_follows_the_measured_curves(run: Run, spec: dict[str, Any], tmp_path: Path) -> None:
    measured = {**spec, "name": "sensitivity", "tables": []}
    vary = {"stages.0.prune.layers": [0, 1], "stages.0.prune.sparsity": [0.4, 0.8]}
    measured["trials"] = [{"name": "layer-{layers}-{sparsity}", "stages": [{"prune": {"sparsity": 0.5}}], "vary": vary}]
    prune = {"sparsity": 0.5, "allocation": "sensitivity", "options": {"sweep": "sensitivity"}}
    spent = {**spec, "name": "spent", "tables": [], "trials": [{"name": "spent", "stages": [{"prune": prune}]}]}
    path = write_spec(tmp_path / "spent.yaml", spent)

    early = run("sweep", "run", path, check=False)
    assert early.returncode == 1
    assert "sweep 'sensitivity' has none" in early.stderr

    run("sweep", "run", write_spec(tmp_path / "sensitivity.yaml", measured))
    run("sweep", "run", path)
    losses = {name: math.log(trial["perplexity"]) for name, trial in status(run, "sensitivity").items()}
    dense = json.loads(run("trial", "show", "sensitivity/layer-0-0.4", "--json").stdout)["stages"][0]["evaluation"][
        "loss"
    ]
    curves = {
        str(layer): [(level, losses[f"layer-{layer}-{level}"] - dense) for level in (0.4, 0.8)] for layer in (0, 1)
    }
    expected = sensitivity({"0": 1000, "1": 1000}, 0.5, curves=curves)
    zeros = json.loads(run("trial", "show", "spent/spent", "--json").stdout)["stages"][-1]["sparsity"]
    assert zeros["pruned"] == pytest.approx(0.5, abs=0.01)
    for layer in (0, 1):
        found = zeros["by_tensor"][f"transformer.h.{layer}.mlp.c_fc.weight"]
        assert found == pytest.approx(expected[str(layer)], abs=0.01)
