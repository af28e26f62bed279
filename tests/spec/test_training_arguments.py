"""Names and values of training arguments, checked without torch, against transformers itself."""

from dataclasses import fields
from typing import Any

import pytest

from prunegpt.spec.training_arguments import REFUSED, arguments, check_argument, choices


def test_the_names_read_from_the_source_are_those_of_the_class() -> None:
    from transformers import TrainingArguments

    given = {item.name for item in fields(TrainingArguments) if item.init}
    assert set(arguments()) == given


def test_the_choices_read_from_the_source_are_those_of_the_enumerations() -> None:
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    for enumeration in (IntervalStrategy, SaveStrategy, SchedulerType, OptimizerNames):
        assert set(choices()[enumeration.__name__]) == {item.value for item in enumeration}


def test_defaults_are_accepted_and_stay_the_same() -> None:
    from transformers import TrainingArguments

    checked = 0
    for item in fields(TrainingArguments):
        if item.name in REFUSED or not isinstance(item.default, (bool, int, float, str, type(None))):
            continue
        if item.default is None and "None" not in arguments()[item.name]:
            continue
        assert check_argument(item.name, item.default) == item.default, item.name
        checked += 1
    assert checked > 40


GOOD: list[tuple[str, Any, Any]] = [
    ("learning_rate", 1, 1.0),
    ("warmup_steps", 10.0, 10),
    ("warmup_steps", 0.1, 0.1),
    ("max_steps", -1, -1),
    ("save_total_limit", None, None),
    ("lr_scheduler_type", "cosine", "cosine"),
    ("lr_scheduler_kwargs", {"num_cycles": 2}, {"num_cycles": 2}),
    ("include_num_input_tokens_seen", True, True),
    ("include_num_input_tokens_seen", "all", "all"),
]
assert GOOD


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_good_values(name: str, value: Any, expected: Any) -> None:
    found = check_argument(name, value)
    assert found == expected
    assert type(found) is type(expected)


BAD: list[tuple[str, Any, str]] = [
    ("learnig_rate", 1, r"unknown training argument 'learnig_rate'\. Did you mean 'learning_rate'\?"),
    ("seed", 1, r"seed is not taken: use `seeds`"),
    ("fp16", True, "use `precision`"),
    ("per_device_eval_batch_size", 1, r"use `evaluate\.batch_size`"),
    ("label_smoothing_factor", 0.1, "the loss must stay the cross-entropy"),
    ("hub_token", "x", "publish the finished model folder yourself"),
    ("learning_rate", "fast", r"learning_rate must be float, got 'fast' \(str\)"),
    ("learning_rate", True, r"learning_rate must be float, got True \(bool\)"),
    ("learning_rate", -1e-3, "learning_rate must not be negative, got -0.001"),
    ("learning_rate", float("nan"), "learning_rate must be a finite number, got nan"),
    ("learning_rate", None, r"got None \(NoneType\)"),
    ("max_steps", 1.5, r"max_steps must be int, got 1\.5 \(float\)"),
    ("max_steps", 0, "max_steps must be at least 1, or -1 for no limit, got 0"),
    ("num_train_epochs", 0, "num_train_epochs must be above 0, got 0"),
    ("per_device_train_batch_size", 0, "must be above 0"),
    ("gradient_accumulation_steps", -2, "must be above 0, got -2"),
    ("gradient_checkpointing", "yes", r"must be bool \| None, got 'yes'"),
    ("lr_scheduler_type", "cosin", r"unknown lr_scheduler_type 'cosin'\. Did you mean 'cosine'\?"),
    ("optim", "adam", r"unknown optim 'adam'\. .*Valid: .*adamw_torch"),
    ("eval_strategy", "never", r"unknown eval_strategy 'never'\. .*Valid: .*epoch"),
    ("lr_scheduler_kwargs", {"a": [float("inf")]}, "lr_scheduler_kwargs must be a finite number, got inf"),
]
assert BAD


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_values(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_argument(name, value)
