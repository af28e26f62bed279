"""Pruning in the dtype that a model is stored in, and with one layer at a time on the device, as a plan has them."""

from pathlib import Path
from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import Planner
from prunegpt.planning.room import needs
from prunegpt.registry import ACTIVATIONS, CRITERIA, GRADIENTS, SOLVERS
from prunegpt.spec.execution import LauncherSpec
from prunegpt.spec.plan import TrialPlan
from tests.support.small import Stored

ENTRIES = {name: kind.entry(name) for kind in (CRITERIA, SOLVERS) for name in kind.names()}
ONE_SHOT = [name for name, entry in ENTRIES.items() if not entry.only_in_training]
CHAIN: tuple[Any, ...] = (
    {"prune": {"sparsity": 0.3}},
    {"shrink": {"drop": [0]}},
    {"prune": {"sparsity": 0.5}},
    "finetune",
    {"prune": {"sparsity": 0.6}},
)


def planner_of(model: Path, text: dict[str, str], *stages: Any) -> Planner:
    base = {"model": str(model), "data": {"files": text, "block_size": 32}, "train": {"max_steps": 2}}
    return Planner({"name": "s", "base": base, "trials": [{"name": "one", "stages": list(stages)}]})


def planned(model: Path, text: dict[str, str], *stages: Any) -> TrialPlan:
    (trial,) = planner_of(model, text, *stages).plan.trials
    return trial


def test_a_chain_keeps_the_stored_dtype_until_it_trains(stored: Stored, text_files: dict[str, str]) -> None:
    for dtype in ("bfloat16", "float16"):
        found = [stage.storage for stage in planned(stored(dtype), text_files, *CHAIN).stages]
        assert found == [dtype] * 4 + ["float32"] * 2
    assert {stage.storage for stage in planned(stored("float32"), text_files, *CHAIN).stages} == {"float32"}
    mixed = planned(stored("float32", said="bfloat16"), text_files, *CHAIN)
    assert {stage.storage for stage in mixed.stages} == {"float32"}  # its config alone says so


def test_the_dtype_that_pruning_computes_in_is_in_its_key(
    stored: Stored, text_files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunegpt.planning.facts import ModelFacts

    folder = stored("bfloat16")
    narrow = [stage.key for stage in planned(folder, text_files, *CHAIN).stages]
    monkeypatch.setattr(ModelFacts, "stored", "float32")  # as before there was a dtype
    wide = [stage.key for stage in planned(folder, text_files, *CHAIN).stages]
    assert narrow[0] == wide[0]
    assert not set(narrow[1:]) & set(wide[1:])


@pytest.mark.parametrize("method", ONE_SHOT)
def test_streaming_is_in_no_key(model_folder: Path, text_files: dict[str, str], method: str) -> None:
    prune = {"method": method, "sparsity": 0.5, "calibration": {"windows": 2, "length": 16}}
    trials = [planned(model_folder, text_files, {"prune": {**prune, "stream": one}}) for one in ("auto", True, False)]
    assert len({trial.key for trial in trials}) == 1


@pytest.mark.parametrize(
    "prune",
    [
        {"method": "obert", "sparsity": 0.5, "repair": "block"},
        {"sparsity": 0.5, "allocation": "global"},
        {"sparsity": 0.5, "repair": "block"},
    ],
    ids=str,
)
def test_what_needs_the_whole_model_is_not_streamed(
    model_folder: Path, text_files: dict[str, str], prune: dict[str, Any]
) -> None:
    asked = {**prune, "calibration": {"windows": 2, "length": 16}}
    with pytest.raises(SpecError, match=r"layers are streamed where one is done .* needs the whole model\. Prune it"):
        planned(model_folder, text_files, {"prune": {**asked, "stream": True}})
    assert planned(model_folder, text_files, {"prune": asked})


def test_training_is_not_streamed(model_folder: Path, text_files: dict[str, str]) -> None:
    with pytest.raises(SpecError, match="stream belongs to a prune stage; training needs the whole model, got True"):
        planned(model_folder, text_files, {"finetune": {"prune": {"sparsity": 0.5, "stream": True}}})


@pytest.mark.parametrize("method", ONE_SHOT)
def test_estimates_follow_dtype_and_streaming(stored: Stored, text_files: dict[str, str], method: str) -> None:
    def size(dtype: str, stream: Any, room: float = float("inf")) -> int:
        prune = {"method": method, "sparsity": 0.5, "calibration": {"windows": 2, "length": 16}, "stream": stream}
        planner = planner_of(folders[dtype], text_files, {"prune": prune})
        assert planner.plan
        found = planner.chains["one"]
        assert found is not None
        (size,) = (size for _, job, size in needs(found, LauncherSpec(), "cuda", room) if job == "prune")
        return size

    folders = {dtype: stored(dtype) for dtype in ("float32", "bfloat16")}
    wide, narrow = size("float32", "auto"), size("bfloat16", "auto")
    assert narrow < wide
    streamed = size("bfloat16", "auto", narrow - 1)
    assert size("bfloat16", "auto", narrow) == size("bfloat16", stream=False, room=0) == narrow
    assert streamed < narrow
    assert size("bfloat16", stream=True) == streamed
    assert (streamed > 0) == bool(ENTRIES[method].needs & (ACTIVATIONS | GRADIENTS))
