"""Early stopping compares what is measured while trials train: so they are measured, or the spec is refused."""

from typing import Any

import pytest

from prunegpt.planning.budget import evaluations
from prunegpt.planning.stages import WATCHED_EVERY
from tests.support.specs import plan_of, problems_of

TRAINED = {"name": "t", "stages": [{"finetune": {"train": {"max_steps": 40}}}]}


def training(**top: Any) -> Any:
    return plan_of(TRAINED, **top).trials[-1].stages[-1]


def test_trials_are_evaluated_where_early_stopping_compares_them() -> None:
    plain, watched = training(), training(early_stop="median")
    assert plain.training.train.get("eval_strategy") is None
    assert watched.training.train["eval_steps"] == WATCHED_EVERY
    assert evaluations(plain, 100) == 0
    assert evaluations(watched, 100) == 10
    assert watched.key == plain.key, "evaluating changes no weight"


def test_what_a_spec_sets_stays() -> None:
    own = {"name": "t", "stages": [{"finetune": {"train": {"max_steps": 40, "eval_strategy": "epoch"}}}]}
    stage = plan_of(own, early_stop="median").trials[-1].stages[-1]
    assert stage.training.train["eval_strategy"] == "epoch"
    assert "eval_steps" not in stage.training.train
    assert evaluations(stage, 80) == 4  # ten steps of eight blocks an epoch


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"eval_strategy": "steps", "eval_steps": 15}, 2),
        ({"eval_strategy": "steps", "eval_steps": 0.3}, 3),
        ({"eval_strategy": "steps", "logging_steps": 20, "eval_on_start": True}, 3),
        ({"eval_strategy": "no"}, 0),
    ],
    ids=str,
)
def test_how_often_a_training_is_evaluated(train: dict[str, Any], expected: int) -> None:
    stage = (
        plan_of({"name": "t", "stages": [{"finetune": {"train": {"max_steps": 40, **train}}}]}).trials[-1].stages[-1]
    )
    assert evaluations(stage, 100) == expected


def test_a_spec_that_forbids_it_is_refused() -> None:
    never = {"name": "t", "stages": [{"finetune": {"train": {"max_steps": 40, "eval_strategy": "no"}}}]}
    (problem,) = problems_of(never, early_stop="median")
    assert "early stopping compares perplexity while trials train; eval_strategy is no" in problem.message
    assert not problems_of(never, early_stop={"method": "median", "metric": "learning_rate"})
