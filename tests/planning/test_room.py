"""Stages that do not fit the memory that their trial would get are named before anything runs."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from prunegpt.planning import precision, room
from prunegpt.planning.resolve import Planner
from prunegpt.planning.room import Room, needs, room_for, room_notes
from prunegpt.planning.teachers import ResolvedTrial
from prunegpt.registry import CRITERIA, SOLVERS
from prunegpt.spec.execution import LauncherSpec
from tests.support.specs import BASE

GIB = 2**30
LOCAL = LauncherSpec()
CALIBRATION = {"windows": 4, "length": 32}
METHODS = [name for kind in (CRITERIA, SOLVERS) for name in kind.names() if not kind.entry(name).only_in_training]
TRAININGS: Mapping[str, Mapping[str, Any]] = {
    "finetune": {"finetune": {}},
    "pruned on the way": {"finetune": {"prune": {"sparsity": 0.5}}},
    "distill": {"distill": {"teacher": {"model": "builtin:tiny-gpt2"}}},
    "adapter": {"finetune": {"adapter": {"rank": 2}}},
}


def resolved(*stages: Any, **base: Any) -> ResolvedTrial:
    spec = {"name": "words", "base": {**BASE, **base}, "trials": [{"name": "one", "stages": list(stages)}]}
    planner = Planner(spec)
    assert planner.plan
    found = planner.chains["one"]
    assert found is not None
    return found


def size_of(job: str, found: ResolvedTrial) -> int:
    (size,) = {size for _, kind, size in needs(found, LOCAL, "cuda") if kind == job}
    return size


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_estimate(method: str) -> None:
    found = resolved({"prune": {"method": method, "sparsity": 0.5, "calibration": CALIBRATION}})
    assert size_of("prune", found) > 4 * 100_000
    assert size_of("evaluation", found) > 4 * 100_000


@pytest.mark.parametrize("stage", TRAININGS)
def test_every_training_has_an_estimate(stage: str) -> None:
    assert size_of("training", resolved(TRAININGS[stage])) > size_of("evaluation", resolved())


def test_what_takes_less_is_estimated_to_take_less() -> None:
    usual = size_of("training", resolved("finetune"))
    for less in (
        {"per_device_train_batch_size": 1},
        {"gradient_checkpointing": True},
        {"activation_checkpointing": True},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    ):
        assert size_of("training", resolved({"finetune": {"train": less}})) < usual
    distilled = {"teacher": {"model": "builtin:tiny-gpt2"}}
    live, cached = (size_of("training", resolved({"distill": {**distilled, **more}})) for more in ({}, {"cache": {}}))
    assert cached < live


def test_what_is_trained_in_parts_takes_less_of_each_card() -> None:
    whole, parts = resolved("finetune"), resolved("finetune", train={**BASE.get("train", {}), "fsdp": True})
    found = []
    for trial, gpus in ((whole, 2), (parts, 2), (parts, 4), (parts, 1), (whole, 1)):
        found += [size for _, job, size in needs(trial, LauncherSpec(gpus=gpus), "cuda") if job == "training"]
    assert found[0] > found[1] > found[2]
    assert found[3] == found[4]


def test_what_processes_cannot_share_has_no_estimate_and_is_no_error_here() -> None:
    found = resolved("finetune")
    shared = list(needs(found, LauncherSpec(gpus=2), "cuda"))
    assert {job for _, job, _ in shared} == {"evaluation", "training"}
    assert {job for _, job, _ in needs(found, LauncherSpec(gpus=3), "cuda")} == {"evaluation"}


def test_a_shortage_is_said_once_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "room_for", lambda *_: Room("cuda", 1000))
    found = resolved({"prune": {"sparsity": 0.5, "stream": False}}, "finetune")
    notes = room_notes([found, found], LOCAL, lambda _: False)
    assert len(notes) == 5  # evaluation after each of three stages, pruning, fine-tuning
    assert all(note.startswith("one: ") and "and there are 1 kB of the GPU. " in note for note in notes)
    assert any("finetune takes about" in note and "per_device_train_batch_size" in note for note in notes)
    assert room_notes([found], LOCAL, lambda _: True) == []
    monkeypatch.setattr(room, "room_for", lambda *_: Room("cuda", 80 * GIB))
    assert room_notes([found], LOCAL, lambda _: False) == []


def test_the_memory_is_that_of_the_device_that_a_trial_would_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "accelerator_here", lambda: 24 * GIB)
    monkeypatch.setattr(room, "free_memory", lambda: 60 * GIB)
    assert room_for("auto", LOCAL) == room_for("cuda", LOCAL) == Room("cuda", 24 * GIB)
    assert room_for("cuda", LauncherSpec(slots_per_gpu=2)) == Room("cuda", 12 * GIB)
    for slots, cards, share in ((4, 1, 4), (4, 2, 2), (3, 2, 2), (1, 2, 1)):  # the fullest card decides
        monkeypatch.setattr(room, "accelerators_here", lambda cards=cards: cards)
        assert room_for("cuda", LauncherSpec(slots=slots)) == Room("cuda", 24 * GIB // share)
        assert room_for("cuda", LauncherSpec(slots=slots, gpus=1)) == Room("cuda", 24 * GIB)
    assert room_for("cpu", LauncherSpec(slots=3)) == Room("cpu", 20 * GIB)
    assert room_for("auto", LauncherSpec(kind="slurm", gpus=1)) is None
    monkeypatch.setattr(room, "accelerator_here", lambda: 0)
    assert room_for("auto", LOCAL) == Room("cpu", 60 * GIB)
    assert room_for("cuda", LOCAL) is None  # which the plan refuses


def test_torch_is_asked_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"24 2 torch.bfloat16": (24, 2, "bfloat16"), "a warning\n0 1 torch.float32\n": (0, 1, "float32")}
    monkeypatch.setattr(precision.shutil, "which", lambda _: "nvidia-smi")
    for answer, expected in answers.items():
        monkeypatch.setattr(precision.subprocess, "run", lambda *_, told=answer, **__: SimpleNamespace(stdout=told))
        precision.this_machine.cache_clear()
        found = (precision.accelerator_here(), precision.accelerators_here(), precision.precision_here())
        assert found == expected
    precision.this_machine.cache_clear()
