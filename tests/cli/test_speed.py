"""prunegpt measure: what it prints, of what it measures beside what; and what it refuses."""

import json
from pathlib import Path

import pytest

from prunegpt.spec.evaluate import SpeedSpec
from tests.support.small import Invoke, make_model, write_spec

SHORT = ("--prompt", "8", "--generate", "3", "--repeats", "6", "--threads", "1")


@pytest.fixture(scope="module")
def deeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("deeper") / "deeper", layers=4)


def test_a_model_beside_another(invoke: Invoke, model_folder: Path, deeper: Path) -> None:
    found = json.loads(invoke("measure", model_folder, "--reference", deeper, *SHORT, "--json"))
    assert (found["model"]["name"], found["reference"]["name"]) == (str(model_folder), str(deeper))
    for name, folder in (("model", model_folder), ("reference", deeper)):
        assert found[name]["bytes"] == (folder / "model.safetensors").stat().st_size
        assert 0 < found[name]["nonzero"] <= found[name]["parameters"]
        assert found[name]["decode"]["low"] <= found[name]["decode"]["value"] <= found[name]["decode"]["high"]
    assert found["model"]["memory"] > 4 * found["model"]["parameters"]
    assert found["speedup"]["low"] <= found["speedup"]["value"] <= found["speedup"]["high"]
    assert found["noisy"] == (max(found["noise"], found["noise_prefill"]) > 0.03)
    assert "speed/8+3/batch-1/float32/cpu/1-threads/" in found["protocol"]
    assert found["protocol"].endswith(f"against {deeper}")


def test_the_table_has_ratios_and_noise(invoke: Invoke, model_folder: Path, deeper: Path) -> None:
    lines = invoke("measure", model_folder, "--reference", deeper, *SHORT).splitlines()
    assert f"{model_folder} beside {deeper}" in " ".join(" ".join(lines[:3]).split())
    rows = {line.split("  ")[0].strip(): line for line in lines}
    for name in ("prefill, tokens/s", "decode, tokens/s"):
        assert "× " in rows[name]
    assert {"first token, s", "parameters", "not zero", "bytes on disk", "memory, bytes"} <= set(rows)
    assert any(line.startswith("Noise: the reference beside itself is ") for line in lines)


@pytest.mark.usefixtures("forked")
def test_a_trial_is_measured_beside_the_model_that_it_came_from(
    invoke: Invoke, model_folder: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    base = {"model": str(model_folder), "data": {"files": text_files, "block_size": 32}, "evaluate": {"max_windows": 2}}
    trial = {"name": "half", "stages": [{"prune": {"method": "magnitude", "sparsity": 0.5}}]}
    invoke("sweep", "run", write_spec(tmp_path / "s.yaml", {"name": "s", "base": base, "trials": [trial]}))
    found = json.loads(invoke("measure", "s/half", *SHORT, "--json"))
    assert (found["model"]["name"], found["reference"]["name"]) == ("s/half", str(model_folder))
    assert found["model"]["nonzero"] < found["reference"]["nonzero"]
    assert found["model"]["bytes"] == found["reference"]["bytes"]  # zeros take as much room as other weights


def test_what_cannot_be_measured_is_refused(invoke: Invoke, model_folder: Path) -> None:
    assert "must fit the 64 positions" in invoke("measure", model_folder, "--prompt", "80", fails=True)
    assert "repeats" in invoke("measure", model_folder, "--repeats", "5", fails=True)
    assert "nowhere" in invoke("measure", model_folder, "--reference", "./nowhere", *SHORT, fails=True)


def test_the_help_names_the_defaults_of_specs(invoke: Invoke) -> None:
    said = " ".join(invoke("measure", "--help").replace("│", " ").split())
    for name in ("prompt", "generate", "batch", "repeats"):
        assert f"(default: {SpeedSpec.model_fields[name].default})" in said, name
