"""A grid is planned as its trials alone are, and what they have in common once."""

from collections import Counter
from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning import resolve
from tests.support.specs import plan_of

VARY = {
    "stages.0.finetune.train.learning_rate": [1e-4, 2e-4, 3e-4],
    "stages.1.prune.sparsity": [0.3, 0.5],
    "data.block_size": [32, 64],
}
TRIAL: dict[str, Any] = {
    "name": "grid",
    "data": {"path": "builtin:text"},
    "stages": [{"finetune": {"train": {"max_steps": 7}}}, {"prune": {"method": "wanda", "sparsity": 0.5}}],
    "seeds": [1, 2],
    "vary": VARY,
}


def test_a_grid_is_planned_as_its_trials_alone_are() -> None:
    found = plan_of(TRIAL).trials
    assert len(found) == 24
    assert len({trial.key for trial in found}) == 24
    for trial in found:
        (alone,) = plan_of(dict(trial.config)).trials
        same = {"order", "name", "group", "swept"}
        assert trial.model_dump(exclude=same) == alone.model_dump(exclude=same)


def test_what_trials_have_in_common_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: Counter[str] = Counter()
    plan_stage, problems = resolve.next_stage, resolve.checks.stage_problems

    def planned(config: Any, *rest: Any) -> Any:
        kinds[f"planned {type(config).__name__}"] += 1
        return plan_stage(config, *rest)

    def checked(config: Any, *rest: Any) -> Any:
        yield from problems(config, *rest)
        kinds[f"checked {type(config).__name__}"] += 1

    monkeypatch.setattr(resolve, "next_stage", planned)
    monkeypatch.setattr(resolve.checks, "stage_problems", checked)
    plan_of(TRIAL)
    trainings, prunings = 3 * 2 * 2, 24  # by rate, block size and seed
    assert kinds == {
        "planned FinetuneSpec": trainings,
        "planned PruneSpec": prunings,
        "checked FinetuneSpec": trainings // 2,  # a seed changes nothing of it
        "checked PruneSpec": prunings // 2,
    }


def test_what_is_wrong_with_a_stage_is_said_of_each_trial_that_has_it() -> None:
    trials = [{"name": name, "stages": [{"prune": {"method": "movement", "sparsity": 0.5}}]} for name in ("a", "b")]
    with pytest.raises(SpecError) as raised:
        plan_of(*trials)
    assert [problem.where.split(".")[:2] for problem in raised.value.problems] == [["trials", "0"], ["trials", "1"]]
