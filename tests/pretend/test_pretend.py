"""All that is registered computes on a CUDA device what it computes on the host, and waits for it in few places.

The device is a pretended one (`tests.support.pretend.device`): real code and real numbers, operands of two devices
raise, and each time that the host waits for the device is counted by the function that asked.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prunegpt.registry import CRITERIA, DISTILLATION_LOSSES, MASK_MODES, SOLVERS
from tests.support.pretend.process import Ask

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
DISTILLED = {
    "distill/chunked.py:chunked_losses nonzero": PASSES,
    "distill/cache.py:TopKCache.lookup to the host": PASSES,
    "distill/cache.py:TopKCache._check_blocks to the host": PASSES,
}


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


@pytest.mark.parametrize("asked", [{"sparsity": 0.5, "allocation": "global"}, {"pattern": "2:4"}])
def test_patterns_and_scopes_give_the_masks_of_the_host(pretend: Ask, asked: dict[str, Any]) -> None:
    assert pretend("one_shot", family="gpt2", method="magnitude", **asked)["differ"] == 0


GRADUAL: dict[str, dict[str, Any]] = {
    **{name: {"method": name, "options": FEW.get(name, {})} for name in METHODS},
    **{f"mode {name}": {"method": "magnitude", "mode": name} for name in MASK_MODES.names() if name != "projected"},
    "global": {"method": "magnitude", "scope": "global"},
    "2:4": {"method": "magnitude", "pattern": "2:4"},
}


@pytest.mark.parametrize("case", GRADUAL)
def test_masks_that_move_in_training_are_those_of_the_host(pretend: Ask, case: str) -> None:
    found = pretend("trained", **GRADUAL[case])
    assert found["differ"] <= CLOSE.get(case, 0)
    assert found["far"] < ROUNDED or found["differ"]
    assert too_many(found["steady"], {FORWARD: PASSES}) == {}


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
    assert too_many(found["steady"], {FORWARD: 2 * PASSES, **DISTILLED}) == {}


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
