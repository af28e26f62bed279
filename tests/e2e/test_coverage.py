"""How much of a model a request prunes is said wherever its sparsity is: check, prune, tables, trial show."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunegpt.lm.models import save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.lm.views import block_matrices, outline
from tests.support.families import tiny
from tests.support.small import Invoke


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A model whose time steps and kernels stay dense, and the share of its weights that is pruned by default."""
    folder, model = tmp_path_factory.mktemp("models") / "mamba", tiny("mamba", vocab_size=1024)
    save_model(model, load_tokenizer("builtin:tiny-gpt2"), folder)
    return folder, outline(model).coverage(block_matrices(model)).share


@pytest.mark.usefixtures("forked")
def test_coverage_is_said_wherever_sparsity_is(
    invoke: Invoke, mamba: tuple[Path, float], text_files: dict[str, str], tmp_path: Path
) -> None:
    folder, share = mamba
    assert 0.5 < share < 0.95
    half: dict[str, Any] = {"prune": {"method": "magnitude", "sparsity": 0.5}}
    spec = {
        "name": "covered",
        "base": {
            "model": str(folder),
            "data": {"files": {"validation": text_files["validation"]}, "block_size": 32},
            "evaluate": {"split": "validation", "max_windows": 4},
        },
        "trials": [
            {"name": "dense", "stages": []},
            {"name": "half", "stages": [half]},
            {"name": "named", "stages": [{"prune": {**half["prune"], "targets": ["*in_proj*"]}}]},
        ],
    }
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")

    checked = json.loads(invoke("sweep", "check", path, "--json"))
    of = {trial["name"]: trial for trial in checked["trials"]}
    assert of["half"]["coverage"] == pytest.approx(share)
    assert 0 < of["named"]["coverage"] < share
    assert (of["dense"]["coverage"], of["dense"]["outside"]) == (None, {})
    assert "backbone.layers.0.mixer.dt_proj.weight" in of["half"]["outside"]
    (note,) = checked["notes"]  # a request that names its tensors is not warned
    assert note.startswith(
        f"half: {share:.1%} of the decoder's weights outside the embeddings are in the pruned tensors"
    )

    invoke("sweep", "run", path)
    shown = json.loads(invoke("trial", "show", "covered/half", "--json"))
    assert shown["stages"][-1]["sparsity"]["coverage"] == pytest.approx(share)
    assert f"Coverage: {share:.1%} of" in invoke("trial", "show", "covered/half")
    table = invoke("table", "covered")
    assert "Sparsity of all" in table
    assert f"of the pruned tensors, {share:.1%} of the weights outside the embeddings" in table
    assert table.count("of the pruned tensors") == 1

    found = json.loads(invoke("prune", folder, tmp_path / "out", "--method", "magnitude", "-s", "0.5", "--json"))
    assert found["coverage"] == pytest.approx(share)
    assert any("stays dense" in note for note in found["notes"])


def test_a_name_that_matches_nothing_is_found_in_a_family_of_any_names(
    invoke: Invoke, mamba: tuple[Path, float], text_files: dict[str, str], tmp_path: Path
) -> None:
    """Its tensors are known before it is loaded, though its file does not show which of them are matrices of layers."""
    path = tmp_path / "spec.yaml"
    base = {"model": str(mamba[0]), "data": {"files": {"validation": text_files["validation"]}, "block_size": 32}}
    stage = {"prune": {"sparsity": 0.5, "targets": ["*q_proj*"]}}
    spec = {
        "name": "s",
        "base": {**base, "evaluate": {"split": "validation"}},
        "trials": [{"name": "t", "stages": [stage]}],
    }
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    assert "'*q_proj*' matches none" in invoke("sweep", "check", path, fails=True)
