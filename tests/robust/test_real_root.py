"""The same with real models: what was cut or exchanged under a root is computed again, to the same figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.small import Run, status, write_spec


@pytest.mark.slow
def test_a_stage_that_was_cut_is_computed_again_to_the_bit(run: Run, spec: dict[str, Any], tmp_path: Path) -> None:
    spec["trials"], spec["tables"] = spec["trials"][:3], []
    path = write_spec(tmp_path / "small.yaml", spec)
    run("sweep", "run", path)
    before = status(run, "small")
    report = json.loads(run("doctor", "--repair", "--json").stdout)
    assert report["findings"] == []
    finetuned = before["finetuned"]["stages"][-1]["key"]
    pruned = before["pruned"]["stages"][-1]["key"]
    weights = tmp_path / "runs" / "stages" / finetuned / "model" / "model.safetensors"
    hashes = json.loads((weights.parent.parent / "files.json").read_text())
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    changed = tmp_path / "runs" / "stages" / pruned / "model" / "model.safetensors"
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)

    plain = run("doctor", "--json", check=False)
    assert plain.returncode == 1
    assert any("model.safetensors is cut" in one["text"] for one in json.loads(plain.stdout)["findings"])
    assert "Traceback" not in plain.stderr
    run("doctor", "--repair")
    run("sweep", "run", path)
    after = status(run, "small")
    assert {name: (one["state"], one["perplexity"], one["sparsity"]) for name, one in after.items()} == {
        name: (one["state"], one["perplexity"], one["sparsity"]) for name, one in before.items()
    }
    again = json.loads((weights.parent.parent / "files.json").read_text())
    assert again["model/model.safetensors"] == hashes["model/model.safetensors"]
