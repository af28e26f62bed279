"""What is computed again says why: every library in a key, every file of a plan, every field of a spec that differs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunegpt.planning import fingerprint
from prunegpt.planning.resolve import plan_data
from prunegpt.records import StageRecord, TrialResult
from prunegpt.spec.plan import TrialPlan
from prunegpt.sweep.changes import changes
from tests.support.specs import model_folder, text_folder

STAGES = [{"finetune": {"train": {"max_steps": 2}}}, {"prune": {"method": "magnitude", "sparsity": 0.5}}]
FLIPPED = {".json": (b"{", b"{ "), ".txt": (b" ", b"  "), ".safetensors": (bytes(8), b"\x01" + bytes(7))}
OTHER: dict[str, Any] = {  # a field of a trial -> another value of it
    "precision": "bfloat16",
    "stages": STAGES[:1],
    "evaluate": {"max_windows": 3},
    "train": {"learning_rate": 0.1},
    "data": {"path": "other", "block_size": 8},
    "model": "other-model",
}


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrialPlan]:
    """The plan of a trial that reads a model and a text in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "other-model"):
        model_folder(tmp_path / name)
    for name in ("text", "other"):
        text_folder(tmp_path / name)
    own = {"model": "model", "data": {"path": "text", "block_size": 8}, "stages": STAGES}
    return lambda **fields: plan_data({"name": "words", "trials": [{"name": "a", **own, **fields}]}).trials[0]


def ran(plan: TrialPlan) -> TrialResult:
    """The trial as finished, computed by the libraries of now."""
    stages = tuple(
        StageRecord(key=stage.key, kind=stage.kind, index=index, cached=False, versions=fingerprint.versions())
        for index, stage in enumerate(plan.stages)
    )
    return TrialResult(id=1, plan=plan, shown=True, state="finished", stages=stages)


@pytest.mark.parametrize("package", fingerprint.versions())
def test_an_upgrade_of_a_library_in_the_key_is_named(
    planned: Callable[..., TrialPlan], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ran(planned())
    version = fingerprint.versions()[package]
    known = fingerprint.version_of
    monkeypatch.setattr(fingerprint, "version_of", lambda name: "99.0" if name == package else known(name))
    assert planned().key != before.plan.key
    assert changes(before, planned()) == [f"{package} {version} is now 99.0"]


def test_every_file_that_changed_is_named(planned: Callable[..., TrialPlan], tmp_path: Path) -> None:
    before = ran(planned())
    for file in before.plan.inputs:
        path = Path(file)
        kept = path.read_bytes()
        path.write_bytes(kept.replace(*FLIPPED[path.suffix], 1))
        assert path.read_bytes() != kept
        assert changes(before, planned()) == [f"{file} has changed"]
        path.write_bytes(kept)
    assert {Path(file).suffix for file in before.plan.inputs} == FLIPPED.keys()


@pytest.mark.parametrize("field", OTHER)
def test_every_field_of_the_spec_that_differs_is_named(planned: Callable[..., TrialPlan], field: str) -> None:
    before = ran(planned())
    found = changes(before, planned(**{field: OTHER[field]}))
    assert any(f"the spec has another {field}" in reason for reason in found), found


def test_a_new_format_of_stages_is_what_remains(
    planned: Callable[..., TrialPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ran(planned())
    monkeypatch.setattr("prunegpt.planning.stages.FORMAT", 99)
    assert planned().key != before.plan.key
    assert changes(before, planned()) == ["a teacher, a hub model or dataset, or PruneGPT's stage format has changed"]


def test_another_seed_and_a_precision_of_another_machine_are_named(planned: Callable[..., TrialPlan]) -> None:
    before = ran(planned())
    assert "seed 42 is now 7" in changes(before, planned(seeds=[7]))
    resolved = planned().model_copy(update={"precision": "bfloat16"})  # of `auto`, on a GPU
    assert changes(before, resolved) == ["precision float32 is now bfloat16"]
