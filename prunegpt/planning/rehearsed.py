"""What transformers would refuse when training begins, asked when a trial is planned.

Packages that are not installed, names that only torch knows, values that a scheduler or a device cannot take: all of it
is known to the trainer alone. It is asked (:mod:`prunegpt.planning.asked`) only where a trial has arguments that could
be refused.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from prunegpt.planning.asked import answer
from prunegpt.spec.execution import LauncherSpec

# Arguments that every machine takes with any value that a spec may have.
PLAIN = frozenset(
    {
        "per_device_train_batch_size",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "logging_strategy",
        "logging_first_step",
        "logging_nan_inf_filter",
        "disable_tqdm",
        "eval_strategy",
        "eval_delay",
        "eval_on_start",
        "save_strategy",
        "save_total_limit",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "dataloader_pin_memory",
        "dataloader_drop_last",
        "train_sampling_strategy",
    }
)
EVERY = frozenset({"logging_steps", "eval_steps", "save_steps"})  # plain where they are whole, or a share below 1
OWN_OPTIMIZERS = frozenset({"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"})
SIZES = frozenset({"num_train_epochs", "max_steps", "per_device_train_batch_size", "warmup_steps"})  # it has its own


def refused(train: Mapping[str, Any], device: str, precision: str, launcher: LauncherSpec) -> Iterator[tuple[str, str]]:
    """The training arguments that the trainer would refuse, or `precision`, each with the reason.

    Args:
        train: checked training arguments of a stage.
        device: auto, cuda, mps or cpu.
        precision: resolved.
        launcher: where the trial will run. Of a cluster's nodes nothing is known but their packages, which are ours.
    """
    asked = sorted(train.keys() - SIZES, key=lambda name: (_plain(name, train[name]), name))
    half = precision == "float16" and device == "auto"  # of the others `precision_problem` knows
    if not half and (not asked or _plain(asked[0], train[asked[0]])):
        return
    question = {
        "arguments": {name: train[name] for name in asked},
        "device": device if launcher.kind == "local" else "elsewhere",
        "precision": precision,
    }
    for name, reason in answer(json.dumps(question)) or ():
        if name == "precision":
            if half:
                yield name, reason
        else:
            yield (
                f"train.{name}",
                f"{name} must be one that training can begin with here; {train[name]!r} is refused: "
                f"{reason.rstrip('.')}. Change it or leave it out.",
            )


def _plain(name: str, value: Any) -> bool:
    if name == "optim":
        return value in OWN_OPTIMIZERS
    if name in EVERY:
        return isinstance(value, (int, float)) and (0 < value < 1 or (value >= 1 and value == int(value)))
    return value is None or value is False or name in PLAIN
