"""`precision: auto` is decided in the plan: in keys and records stands what is computed in."""

from typing import Any

import pytest

from prunegpt.api import Sweep
from prunegpt.errors import LaunchError
from prunegpt.planning import precision
from prunegpt.planning.resolve import plan_data
from prunegpt.spec.execution import LauncherSpec
from prunegpt.spec.plan import TrialPlan

STAGES = [
    "finetune",
    {"prune": {"method": "wanda", "sparsity": 0.5, "calibration": {"windows": 2, "length": 16}}},
    {"distill": {"teacher": {"model": "builtin:tiny-gpt2"}}},
]


def plan(**base: Any) -> TrialPlan:
    settings = {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 32}, **base}
    trials = plan_data({"name": "p", "base": settings, "trials": [{"name": "all", "stages": STAGES}]}).trials
    return next(trial for trial in trials if trial.name == "all")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "precision_here", lambda: "bfloat16")


def test_no_plan_leaves_it_open() -> None:
    for base in ({}, {"evaluate": {"precision": "auto"}}, {"device": "cpu"}, {"precision": "bfloat16"}):
        found = plan(**base)  # type: ignore[arg-type]
        assert "auto" not in (found.precision, found.evaluate.precision)


def test_what_a_gpu_computes_is_never_taken_for_what_a_processor_does(gpu: None) -> None:
    there = plan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "precision_here", lambda: "float32")
        here = plan()
    assert (there.precision, here.precision) == ("bfloat16", "float32")
    assert {stage.key for stage in there.stages}.isdisjoint(stage.key for stage in here.stages)
    assert there.evaluation_key != here.evaluation_key


@pytest.mark.parametrize(
    ("base", "resolved"),
    [
        ({"precision": "float32"}, ("float32", "float32")),
        ({"precision": "bfloat16"}, ("bfloat16", "bfloat16")),
        ({"device": "cpu"}, ("float32", "float32")),
        ({"evaluate": {"precision": "float32"}}, ("bfloat16", "float32")),
        ({"precision": "float32", "evaluate": {"precision": "auto"}}, ("float32", "bfloat16")),
    ],
)
def test_of_a_machine_with_a_gpu(gpu: None, base: dict[str, Any], resolved: tuple[str, str]) -> None:
    found = plan(**base)
    assert (found.precision, found.evaluate.precision) == resolved


@pytest.mark.parametrize(
    ("kind", "gpus", "found"), [("slurm", 1, "bfloat16"), ("slurm", None, "float32"), ("ray", 2, "bfloat16")]
)
def test_of_a_cluster_its_gpus_tell(kind: str, gpus: int | None, found: str) -> None:
    assert precision.resolved("auto", "auto", LauncherSpec(kind=kind, gpus=gpus)) == found


def test_a_launcher_that_would_compute_in_another_precision_is_refused(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(precision, "precision_here", lambda: "bfloat16")
    base = {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 32}}
    sweep = Sweep({"name": "p", "base": base, "trials": [{"name": "a"}]}, root=tmp_path)
    with pytest.raises(LaunchError, match="a was planned in bfloat16 for launcher local, but slurm would compute it"):
        sweep.run(launcher="slurm")
