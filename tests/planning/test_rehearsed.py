"""`sweep check` accepts the training arguments that the trainer can begin with on this machine, and no others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning import rehearsed
from prunegpt.planning.resolve import plan_data
from prunegpt.spec.training_arguments import DECISIVE, NEUTRAL, choices

_TARGETS = {"optim_target_modules": "all-linear"}


def check(train: Mapping[str, Any], **base: Any) -> str:
    """What is wrong with a training stage of these arguments; empty where nothing is."""
    settings = {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 32}, **base}
    spec = {"name": "r", "base": settings, "trials": [{"name": "a", "stages": [{"finetune": {"train": train}}]}]}
    try:
        plan_data(spec)
    except SpecError as error:
        return str(error)
    return ""


def created(optimizer: str, folder: Path) -> bool:
    """Whether transformers itself makes the optimizer of that name, here and now."""
    from torch import nn
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(output_dir=str(folder), optim=optimizer, use_cpu=True, **_TARGETS)
    try:
        Trainer(model=nn.Sequential(nn.Linear(2, 2)), args=arguments).create_optimizer()
    except (ImportError, ValueError):
        return False
    return True


@pytest.mark.parametrize("optimizer", choices()["OptimizerNames"])
def test_an_optimizer_is_accepted_where_the_trainer_can_create_it(optimizer: str, tmp_path: Path) -> None:
    found = check({"optim": optimizer, **_TARGETS})
    assert bool(found) is not created(optimizer, tmp_path)
    if found:
        assert f"optim must be one that training can begin with here; '{optimizer}' is refused: " in found


BAD: list[tuple[Mapping[str, Any], str]] = [
    ({"torch_compile_backend": "nosuch"}, "'NOSUCH' is not a valid DynamoBackend"),
    ({"torch_compile": True, "torch_compile_mode": "nosuch"}, "Unrecognized mode=nosuch"),
    ({"lr_scheduler_kwargs": {"nosuch": 1}}, "unexpected keyword argument 'nosuch'"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}}, "could not convert string to float"),
    ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}}, "must be smaller than initial lr"),
    ({"dataloader_prefetch_factor": 2}, "can only be set when data is loaded in a different process"),
    ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"nosuch": 1}}, "Unexpected keyword arguments"),
    ({"optim_args": "momentum"}, "not enough values to unpack"),
    ({"logging_steps": 0}, "requires non-zero --logging_steps"),
    ({"eval_strategy": "steps", "eval_steps": 1.5}, "must be an integer if bigger than 1"),
    ({"log_level": "loud"}, "log_level must be one that training can begin with here; 'loud' is refused"),
]
assert BAD


@pytest.mark.parametrize(("train", "message"), BAD, ids=str)
def test_what_the_trainer_would_refuse_is_told_before(train: Mapping[str, Any], message: str) -> None:
    assert message in check(train)


def test_all_that_it_would_refuse_is_told_at_once() -> None:
    found = check({"optim": "lomo", "log_level": "loud", "torch_compile_backend": "nosuch"})
    assert all(f"{name} must be one that" in found for name in ("optim", "log_level", "torch_compile_backend"))


def test_what_a_processor_cannot_is_refused_where_one_computes() -> None:
    import torch

    if not torch.cuda.is_available():
        assert "tf32 must be one that training can begin with here" in check({"tf32": True})
        assert "float16 cannot be trained in on a CPU" in check({}, precision="float16")
        assert not check({"tf32": True}, device="cuda"), "a machine that is not this one"


def test_a_trial_without_unusual_arguments_does_not_wait_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsed, "answer", pytest.fail)
    plain = {"learning_rate": 1e-3, "num_train_epochs": 2, "lr_scheduler_type": "cosine", "optim": "adamw_torch"}
    assert not check({**plain, "logging_steps": 5, "eval_strategy": "steps", "eval_steps": 10, "save_steps": 0.5})


def test_a_rehearsal_that_does_not_answer_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsed, "answer", lambda question: None)
    assert not check({"optim": "lomo"})


def test_plain_arguments_are_arguments() -> None:
    assert rehearsed.PLAIN | rehearsed.EVERY | rehearsed.SIZES <= DECISIVE | NEUTRAL
