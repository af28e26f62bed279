"""A stage leaves its process as it was, whatever training argument it was given."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from prunegpt.spec.training_arguments import DECISIVE, NEUTRAL
from prunegpt.stages.process import SETTINGS
from tests.support.running import RunTrials
from tests.support.training_arguments import DECISIVE_VALUES, NEUTRAL_VALUES

COMPILED: Mapping[str, Any] = {"torch_compile": True, "torch_compile_backend": "eager"}
VALUES: Mapping[str, Mapping[str, Any]] = {
    **DECISIVE_VALUES,
    **{name: values[0] for name, values in NEUTRAL_VALUES.items()},
    "torch_compile": COMPILED,
}


def settings() -> dict[str, Any]:
    return {name: read() for name, (read, _) in SETTINGS.items()}


QUICK = ("full_determinism", "log_level", "torch_compile")  # those that are known to set something
SLOW = sorted(((DECISIVE | NEUTRAL) & VALUES.keys()) - set(QUICK))


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_training_leaves_its_process_as_it_was(run_trials: RunTrials, name: str) -> None:
    before = settings()
    record = run_trials({"name": "a", "stages": [{"finetune": {"train": VALUES[name]}}]})["a"]
    assert record.state == "finished", record.trace
    assert settings() == before


def test_the_model_of_a_stage_is_gone_before_the_next_one_is_loaded(
    run_trials: RunTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a collection of garbage, which takes a third of a second: nothing of a model refers to it."""
    collected: list[int] = []
    monkeypatch.setattr("prunegpt.stages.cache.gc", SimpleNamespace(collect=lambda: collected.append(1)))
    gradual = {"sparsity": 0.5, "unit": "steps", "start": 1, "end": 3, "every": 1}
    stages = [{"prune": {"sparsity": 0.3}}, {"finetune": {"prune": gradual}}, {"shrink": {"drop": [1]}}]
    record = run_trials({"name": "a", "stages": stages})["a"]
    assert record.state == "finished", record.trace
    assert collected == []
