"""All that is registered computes on a CUDA device what it computes on the host, and waits for it in few places.

The device is a pretended one (`tests.support.pretend.device`): real code and real numbers, operands of two devices
raise, and each time that the host waits for the device is counted by the function that asked.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prunegpt.registry import (
    ACTIVATIONS,
    CRITERIA,
    DISTILLATION_LOSSES,
    GRADIENTS,
    MASK_MODES,
    NAMED_ALLOCATIONS,
    REFINEMENTS,
    SOLVERS,
)
from tests.support.pretend.process import Ask
from tests.support.small import Stored

ROUNDED = 1e-4  # how far weights of about 0.1 may be apart after some steps of AdamW: sums are taken in other parts
METHODS = {
    **{name: CRITERIA.entry(name) for name in CRITERIA.names()},
    **{n: SOLVERS.entry(n) for n in SOLVERS.names()},
}
ONE_SHOT = [name for name, entry in METHODS.items() if not entry.only_in_training]
FEW = {"admm": {"iterations": 4, "refine_iterations": 2}}  # options with which a method takes less time
CLOSE = {"admm": 16}  # mask bits that may differ in training: its steps enlarge what rounding leaves of its inputs

# Where a step may wait: once a forward pass of transformers.
FORWARD = "transformers/masking_utils.py:find_packed_sequence_indices _local_scalar_dense"
PASSES = 2  # micro-batches of a step


def too_many(waits: Mapping[str, int], allowed: Mapping[str, int]) -> dict[str, int]:
    """Where the device was waited for more often than it may be."""
    return {place: count for place, count in waits.items() if count > allowed.get(place, 0)}


@pytest.mark.parametrize(
    ("method", "family"), [*((name, "gpt2") for name in ONE_SHOT), ("wanda", "llama"), ("sparsegpt", "llama")]
)
def test_one_shot_masks_are_those_of_the_host(pretend: Ask, method: str, family: str) -> None:
    found = pretend("one_shot", family=family, method=method, sparsity=0.5, options=FEW.get(method, {}))
    assert found["differ"] == 0
    assert found["far"] < ROUNDED


@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"pattern": "2:4"}])
@pytest.mark.parametrize("refine", REFINEMENTS.names())
def test_refined_masks_are_those_of_the_host(pretend: Ask, refine: str, asked: dict[str, Any]) -> None:
    assert pretend("one_shot", family="gpt2", method="wanda", refine=refine, **asked)["differ"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_equal_scores_go_as_a_stable_sort_has_them(pretend: Ask, method: str) -> None:
    assert pretend("ties", method=method) == []


STREAMED = [name for name in ONE_SHOT if METHODS[name].needs & (ACTIVATIONS | GRADIENTS)]


@pytest.mark.parametrize(("method", "propagate"), [*((name, True) for name in STREAMED), ("wanda", False)])
def test_streamed_layers_are_pruned_to_the_same_bits(pretend: Ask, method: str, propagate: bool) -> None:
    asked = {"family": "gpt2", "method": method, "sparsity": 0.5, "options": FEW.get(method, {})}
    found = pretend("streamed", **asked, propagate=propagate)
    assert found["same"]
    assert found["peaks"][1] < found["peaks"][0]


def test_streamed_layers_keep_the_dtype_that_they_are_stored_in(pretend: Ask) -> None:
    assert pretend("streamed", family="llama", method="wanda", pattern="2:4", storage="bfloat16")["same"]


OF_STAGES: dict[str, dict[str, Any]] = {
    **{name: {"method": name, "options": FEW.get(name, {})} for name in ONE_SHOT},
    **{
        name: {"method": "wanda", "allocation": name}
        for name in NAMED_ALLOCATIONS
        if name not in ("global", "sensitivity")  # which needs curves
    },
    **{f"refine {name}": {"method": "wanda", "refine": name} for name in REFINEMENTS.names()},
    "2:4": {"method": "sparsegpt", "pattern": "2:4"},
    "dense statistics": {"method": "wanda", "propagate": False},
    "taylor refined": {"method": "taylor", "refine": "swaps"},
}


@pytest.mark.parametrize("case", OF_STAGES)
def test_streamed_stages_publish_the_same_bits_under_the_same_keys(
    pretend: Ask, stored: Stored, text_files: dict[str, str], case: str
) -> None:
    prune = {**OF_STAGES[case], "calibration": {"windows": 4, "length": 16}}
    prune |= {} if "pattern" in prune else {"sparsity": 0.5}
    found = pretend(
        "published",
        files=text_files,
        model=str(stored("bfloat16")),
        stages=[{"prune": {"sparsity": 0.2}}, {"prune": prune}],
        streams=[False, True],
    )
    whole, streamed = found
    assert [[one for one, _ in run["pruned"]] for run in found] == [[False] * 2, [True] * 2]
    assert streamed["hashes"] == whole["hashes"]
    assert all(any("masks" in name for name, _ in stage) and len(stage) == 2 for stage in whole["hashes"])
    assert streamed["keys"] == whole["keys"]
    assert streamed["measured"] == whole["measured"]
    assert streamed["pruned"][1][1] < whole["pruned"][1][1]  # bytes


@pytest.mark.parametrize(
    ("method", "free", "streams"), [("wanda", 1000, True), ("wanda", 2**30, False), ("taylor", 1000, True)]
)
def test_a_stage_is_streamed_by_itself_where_the_model_does_not_fit(
    pretend: Ask, model_folder: Path, text_files: dict[str, str], method: str, free: int, streams: bool
) -> None:
    stages = [{"prune": {"method": method, "sparsity": 0.5, "calibration": {"windows": 2, "length": 16}}}]
    asked = {"files": text_files, "model": str(model_folder), "stages": stages}
    (found,) = pretend("published", **asked, streams=["auto"], free=free)
    assert [one for one, _ in found["pruned"]] == [streams]


@pytest.mark.parametrize("asked", [{"sparsity": 0.5, "allocation": "global"}, {"pattern": "2:4"}])
def test_patterns_and_scopes_give_the_masks_of_the_host(pretend: Ask, asked: dict[str, Any]) -> None:
    assert pretend("one_shot", family="gpt2", method="magnitude", **asked)["differ"] == 0


GRADUAL: dict[str, dict[str, Any]] = {
    **{name: {"method": name, "options": FEW.get(name, {})} for name in METHODS},
    **{f"mode {name}": {"method": "magnitude", "mode": name} for name in MASK_MODES.names() if name != "projected"},
    "global": {"method": "magnitude", "scope": "global"},
    "2:4": {"method": "magnitude", "pattern": "2:4"},
}


# An update of masks may wait once, however many tensors there are: for whether scores are finite, what masks prune and
# the zeros that there are afterwards, all together.
UPDATE = {"pruning/mask.py:Mask.count tolist": 1}
FEW_WAITS = {name for name, entry in METHODS.items() if not entry.reads_text(training=True)} | {"global", "2:4"}


@pytest.mark.parametrize("case", GRADUAL)
def test_masks_that_move_in_training_are_those_of_the_host(pretend: Ask, case: str) -> None:
    found = pretend("trained", **GRADUAL[case])
    assert found["differ"] <= CLOSE.get(case, 0)
    assert found["far"] < ROUNDED or found["differ"]
    assert too_many(found["steady"], {FORWARD: PASSES}) == {}
    if case in FEW_WAITS:
        assert too_many(found["update"], UPDATE) == {}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_masks_cost_no_wait_in_a_step(pretend: Ask, precision: str) -> None:
    found = pretend("trained", fixed=True, precision=precision)
    assert found["differ"] == 0
    assert found["far"] < (ROUNDED if precision == "float32" else 0.01)
    assert too_many(found["steady"], {FORWARD: PASSES}) == {}


DISTILLATIONS: dict[str, dict[str, Any]] = {
    **{name: {"loss": name} for name in DISTILLATION_LOSSES.names()},
    "cached": {"loss": "forward_kl", "cached": True},
    "inner terms": {"loss": "forward_kl", "gains": {"hidden_gain": 1.0, "attention_gain": 1.0}},
}


@pytest.mark.parametrize("case", DISTILLATIONS)
def test_a_distilled_model_is_that_of_the_host(pretend: Ask, case: str) -> None:
    found = pretend("trained", **DISTILLATIONS[case])
    assert found["differ"] == 0
    assert found["far"] < ROUNDED
    assert too_many(found["steady"], {FORWARD: PASSES if case == "cached" else 2 * PASSES}) == {}


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "magnitude"},
        {"method": "movement", "precision": "bfloat16"},
        {"fixed": True, "precision": "float16"},
        {"loss": "forward_kl"},
        {"arguments": {"optim": "adafactor"}, "fixed": True},
    ],
)
def test_a_training_gives_all_its_memory_back_at_once(pretend: Ask, asked: dict[str, Any]) -> None:
    found = pretend("memory_left", **asked)
    assert found.pop("peak") > 0
    scaler = 8 if asked.get("precision") == "float16" else 0  # two numbers of the scale of its loss
    assert found == {"training": scaler, "model": scaler}


@pytest.mark.parametrize("method", ONE_SHOT)
def test_a_device_without_float64_prunes_too(pretend: Ask, method: str) -> None:
    asked = {"family": "gpt2", "method": method, "sparsity": 0.5, "options": FEW.get(method, {})}
    found = pretend("without_doubles", check="one_shot", **asked)
    assert found["differ"] == 0


@pytest.mark.parametrize("case", ["wanda", "obert", "movement", "mode elsa"])
def test_a_device_without_float64_trains_too(pretend: Ask, case: str) -> None:
    found = pretend("without_doubles", check="trained", **GRADUAL[case])
    assert found["differ"] == 0
    assert found["far"] < ROUNDED


def test_a_loss_a_part_at_a_time_is_the_models_own(pretend: Ask) -> None:
    """A device takes all tokens and weighs some with nothing, the host leaves these out: two ways to one loss."""
    found = pretend("chunked_loss", fixed=True)
    assert found["far"] < ROUNDED
    assert too_many(found["steady"], {FORWARD: PASSES}) == {}


def test_a_scaled_loss_costs_criteria_one_wait_a_tensor(pretend: Ask) -> None:
    found = pretend("trained", method="movement", precision="float16")
    assert found["far"] < 0.01
    assert set(found["steady"]) - {FORWARD} <= {
        "torch/amp/grad_scaler.py:GradScaler.get_scale _local_scalar_dense",
        "pruning/gradients.py:GatheredGradients.accumulate.<locals>.<genexpr> _local_scalar_dense",
    }


def test_a_whole_trial_measures_what_it_does_on_the_host(
    pretend: Ask, model_folder: Path, text_files: dict[str, str]
) -> None:
    gradual = {"sparsity": 0.5, "unit": "steps", "start": 1, "end": 3, "every": 1}
    trials = [
        {"name": "teacher", "stages": ["finetune"]},
        {
            "name": "student",
            "stages": [
                {"prune": {"sparsity": 0.3, "method": "wanda", "calibration": {"windows": 2, "length": 16}}},
                {"distill": {"teacher": "teacher", "prune": gradual, "cache": {"k": 16}}},
            ],
        },
    ]
    found = pretend("trials", files=text_files, model=str(model_folder), trials=trials)
    here, there = found["cpu"], found["cuda"]
    assert [here["state"], there["state"]] == ["finished", "finished"], there["trace"] or here["trace"]
    assert set(there["devices"]) == {"Pretended"}
    assert there["losses"] == pytest.approx(here["losses"], rel=1e-5)
    assert there["sparsities"] == here["sparsities"]


def test_operands_of_two_devices_raise(pretend: Ask) -> None:
    assert "same device" in pretend("mixed")
