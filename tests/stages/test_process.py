"""A stage leaves its process as it was, whatever training argument it was given."""

from collections.abc import Mapping
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
