"""What cannot be trained in parts is refused before anything runs, by what is registered, with what to do."""

from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import Planner
from prunegpt.registry import CRITERIA, MASK_MODES, SOLVERS
from prunegpt.spec.schema import DistillSpec, FinetuneSpec
from prunegpt.spec.sharding import OPTIMIZERS, sharding_problems
from prunegpt.spec.training_arguments import check_argument, choices, training_problems
from tests.support.specs import BASE

METHODS = {name: kind.entry(name) for kind in (CRITERIA, SOLVERS) for name in kind.names()}
REFUSED = [name for name, entry in METHODS.items() if entry.reads_text(training=True)]
TAKEN = [name for name in METHODS if name not in REFUSED]
assert REFUSED
assert TAKEN


def problems(config: dict[str, Any], precision: str = "bfloat16", **train: Any) -> dict[str, str]:
    spec = DistillSpec if "teacher" in config else FinetuneSpec
    return dict(sharding_problems(spec.model_validate(config), {"fsdp": True, **train}, precision))


@pytest.mark.parametrize("method", REFUSED)
def test_methods_that_run_the_model_for_masks_are_refused(method: str) -> None:
    found = problems({"prune": {"method": method, "sparsity": 0.5}})
    assert list(found) == ["prune.method"]
    assert found["prune.method"].startswith(f"{method} runs whole layers on calibration data")
    assert all(name in found["prune.method"] for name in TAKEN)
    assert not problems({"prune": {"method": method, "sparsity": 0.5}}, fsdp=False)


@pytest.mark.parametrize("mode", MASK_MODES.names())
@pytest.mark.parametrize("method", TAKEN)
def test_others_are_taken_in_every_mode(method: str, mode: str) -> None:
    assert not problems({"prune": {"method": method, "mode": mode, "sparsity": 0.5}})


def test_a_mode_from_elsewhere_must_say_that_it_works_on_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole:
        def __init__(self, views: Any, masks: Any, *, moving: Any, strength: float = 1.0) -> None: ...

    class Parts(Whole):
        shards = True

    assert [MASK_MODES.read(kind).shards for kind in (Whole, Parts)] == [False, True]
    entry = MASK_MODES.entry
    monkeypatch.setattr(MASK_MODES, "entry", lambda name: MASK_MODES.read(Whole) if name == "rigl" else entry(name))
    found = problems({"prune": {"mode": "rigl", "sparsity": 0.5}})
    assert found["prune.mode"] == (
        "mode rigl does not say that it works on parts of matrices (shards = True). Use projected, live or elsa, or "
        "train without fsdp."
    )


@pytest.mark.parametrize("optimizer", choices()["OptimizerNames"])
def test_optimizers_that_look_at_a_matrix_as_a_whole_are_refused(optimizer: str) -> None:
    found = problems({}, optim=optimizer)
    assert (list(found) == ["train.optim"]) is (optimizer not in OPTIMIZERS)


@pytest.mark.parametrize(
    ("config", "train", "place", "message"),
    [
        ({"adapter": {"rank": 2}}, {}, "adapter", "an adapter trains few weights"),
        ({"teacher": "a", "on_policy": 0.5}, {}, "on_policy", "a student that writes text must be whole"),
        ({}, {"eval_strategy": "steps"}, "train.eval_strategy", "measured when its stage has ended"),
        ({}, {"torch_compile": True}, "train.torch_compile", "torch_compile does not go with fsdp"),
        ({}, {"use_liger_kernel": True}, "train.use_liger_kernel", "its kernels read whole weights"),
    ],
)
def test_what_does_not_go_together(config: dict[str, Any], train: dict[str, Any], place: str, message: str) -> None:
    found = problems(config, **train)
    assert list(found) == [place]
    assert message in found[place]
    assert "Remove one" in found[place]


def test_float16_is_refused() -> None:
    assert problems({}, "float16") == {
        "train.fsdp": "fsdp trains in bfloat16 or float32, got precision float16. Use bfloat16."
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fsdp", "full_shard", "fsdp must be true or false, got 'full_shard'. Write fsdp: true"),
        ("fsdp_config", "a.json", "fsdp_config must be settings by name, got 'a.json'"),
        ("fsdp_config", {"cpu_offload": True}, "unknown setting of fsdp_config 'cpu_offload'"),
        ("fsdp_config", {"reshard_after_forward": 1}, "fsdp_config.reshard_after_forward must be true or false, got 1"),
        ("fsdp_config", {"version": 1}, "fsdp_config.version must be 2, got 1"),
    ],
)
def test_settings_that_are_not_taken(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        check_argument(name, value)


def test_settings_of_nothing_are_refused() -> None:
    ((name, message),) = training_problems({"fsdp_config": {"version": 2}}, prunes=False)
    assert (name, message.startswith("fsdp_config has settings of fsdp, which is off")) == ("fsdp_config", True)


def test_a_check_names_the_line_and_the_key_is_that_of_a_whole_model() -> None:
    def planned(**train: Any) -> Planner:
        stage = {"finetune": {"prune": {"sparsity": 0.5}}}
        base = {**BASE, "train": {**BASE.get("train", {}), **train}}
        return Planner({"name": "words", "base": base, "trials": [{"name": "one", "stages": [stage]}]})

    usual, parts = planned(), planned(fsdp=True)
    assert usual.plan is not None
    assert parts.plan is not None
    assert usual.plan.trials[0].key == parts.plan.trials[0].key
    with pytest.raises(SpecError, match="a sharded model is measured when its stage has ended"):
        assert planned(fsdp=True, eval_strategy="steps", eval_steps=1).plan
