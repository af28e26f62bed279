"""The names of transformers.TrainingArguments, read from its source so that checking a spec does not import torch."""

import ast
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunegpt.errors import unknown

LOGGING_STEPS = 10  # between points of a curve, where the arguments do not say
SAVE_STEPS = 500  # of transformers.TrainingArguments
_NO_HUB = "nothing: publish the finished model folder yourself"

# Set by PruneGPT itself, with the field to use instead.
OURS = {
    "output_dir": "the stage's folder under the root",
    "seed": "`seeds`",
    "data_seed": "`seeds`",
    "do_train": "`stages`",
    "do_eval": "`evaluate`",
    "do_predict": "`evaluate`",
    "resume_from_checkpoint": "nothing: a stage always resumes",
    "report_to": "`tracking`",
    "run_name": "the trial's name",
    "use_cpu": "`device`",
    "bf16": "`precision`",
    "fp16": "`precision`",
    "bf16_full_eval": "`precision`",
    "fp16_full_eval": "`precision`",
    "per_device_eval_batch_size": "`evaluate.batch_size`",
    "push_to_hub": _NO_HUB,
    "hub_token": _NO_HUB,
    "hub_private_repo": _NO_HUB,
    "hub_model_id": _NO_HUB,
    "hub_strategy": _NO_HUB,
    "hub_always_push": _NO_HUB,
    "hub_revision": _NO_HUB,
    "label_smoothing_factor": "nothing: the loss must stay the cross-entropy that perplexity is made of",
    "auto_find_batch_size": "nothing: the batch size decides the result, so it is stated",
    "remove_unused_columns": "nothing: the columns are ours",
    "ignore_data_skip": "nothing: a stage that goes on sees the batches that it would have seen",
    "accelerator_config": "nothing: a stage that goes on draws the order that it would have drawn",
    "save_only_model": "nothing: a stage goes on from its checkpoints, which hold optimizer and schedule",
    "local_rank": "nothing: the launcher sets it",
}

# Change what is written or how fast, never the weights; left out of the stage key.
NEUTRAL = frozenset(
    {
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "logging_nan_inf_filter",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "disable_tqdm",
        "eval_strategy",
        "eval_steps",
        "eval_delay",
        "eval_on_start",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "save_on_each_node",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "torch_empty_cache_steps",
        "skip_memory_metrics",
        "include_num_input_tokens_seen",
        "project",
    }
)

# Of those, what decides the result all the same where `load_best_model_at_end` chooses among checkpoints.
CHOOSING = frozenset({"eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"})

_ABOVE_ZERO = frozenset({"num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"})
_NOT_NEGATIVE = frozenset({"learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay"})


_MEASURED = ("loss", "perplexity")  # what an evaluation in mid-training gives


@cache
def arguments() -> Mapping[str, str]:
    """Field name -> annotation, as written in the installed transformers.

    Raises:
        ImportError: transformers is not installed.
    """
    for node in _source("training_args.py"):
        if node.name == "TrainingArguments":
            return {
                item.target.id: ast.unparse(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    raise ImportError("transformers has no TrainingArguments")


@cache
def choices() -> Mapping[str, tuple[str, ...]]:
    """Enumeration -> its values, such as SchedulerType -> linear, cosine, ..., as written there."""
    return {
        node.name: tuple(
            item.value.value
            for item in node.body
            if isinstance(item, ast.Assign)
            and isinstance(item.value, ast.Constant)
            and isinstance(item.value.value, str)
        )
        for name in ("trainer_utils.py", "training_args.py")
        for node in _source(name)
        if any(isinstance(base, ast.Name) and base.id == "ExplicitEnum" for base in node.bases)
    }


def _source(name: str) -> list[ast.ClassDef]:
    package = find_spec("transformers")
    if package is None or package.origin is None:
        raise ImportError("transformers is not installed")
    source = Path(package.origin).with_name(name).read_text(encoding="utf-8")
    return [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


def check_argument(name: str, value: Any) -> Any:
    """The value of one training argument; 1 and 1.0 come out alike.

    Raises:
        ValueError: an unknown name, one that PruneGPT sets itself, or a value that cannot be.
    """
    known = arguments()
    if name in OURS:
        raise ValueError(f"{name} is set by PruneGPT: use {OURS[name]}.")
    if name not in known:
        raise ValueError(unknown("training argument", name, [valid for valid in known if valid not in OURS]))
    annotation = known[name]
    _refuse_non_finite(name, value)
    parts = {part.strip() for part in annotation.split("|")}
    if value is None and "None" in parts:
        return value
    if parts <= {"int", "float", "bool", "str", "None"}:
        number = _number(name, value, parts, annotation)
        return value if number is None else _in_range(name, number)
    for part in parts:
        if isinstance(value, str) and value not in choices().get(part, (value,)):
            raise ValueError(unknown(name, value, choices()[part]))
    return value


def training_problems(train: Mapping[str, Any], *, prunes: bool) -> Iterator[tuple[str, str]]:
    """What does not go together in the arguments of a training stage, each with the argument.

    Args:
        train: checked arguments.
        prunes: whether masks change while the model trains.
    """
    best = "load_best_model_at_end"
    if not train.get(best):
        return
    if prunes:
        yield (
            best,
            f"{best} goes back to a checkpoint, which has another sparsity while pruning is on its way. Remove it: "
            f"keep_checkpoints publishes all checkpoints, and the stage is measured at its end.",
        )
        return
    when, saved = (str(train.get(name, "no")) for name in ("eval_strategy", "save_strategy"))
    if when == "no" or saved not in (when, "best"):
        yield (
            best,
            f"{best} chooses among checkpoints that were evaluated, so eval_strategy and save_strategy must be the "
            f"same, steps or epoch, but are {when} and {saved}.",
        )
    elif saved == "steps":
        every = train.get("eval_steps") or train.get("logging_steps", LOGGING_STEPS)
        between = train.get("save_steps", SAVE_STEPS)
        if (every < 1) != (between < 1) or round(between * 1e6) % max(round(every * 1e6), 1):
            yield (
                "save_steps" if "save_steps" in train else best,
                f"save_steps must be a multiple of eval_steps for {best}, but they are {between:g} and {every:g}.",
            )
    metric = train.get("metric_for_best_model")
    if metric is not None and str(metric).removeprefix("eval_") not in _MEASURED:
        yield "metric_for_best_model", unknown("measured metric", str(metric), _MEASURED)


def precision_problem(device: str, precision: str) -> str | None:
    """Why a model cannot be trained in a precision; None where it can, or the device is found out later."""
    if precision == "float16" and device == "cpu":
        return (
            "float16 cannot be trained in on a CPU: its gradients underflow, and the scaler that mends it needs a GPU. "
            "Use precision bfloat16 or float32, or device cuda."
        )
    return None


def _number(name: str, value: Any, parts: set[str], annotation: str) -> int | float | None:
    """The value as a number of the annotated kind; None where it is a truth value or a text that is allowed."""
    if type(value).__name__ in parts & {"bool", "str"}:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if "float" in parts:  # 1 and 1.0 are one value and shall give one key
            return int(value) if name.endswith("_steps") and value == int(value) else float(value)
        if "int" in parts and isinstance(value, int):
            return value
    raise ValueError(f"{name} must be {annotation}, but got {value!r} ({type(value).__name__}).")


def _in_range(name: str, value: int | float) -> int | float:
    if name in _ABOVE_ZERO and value <= 0:
        raise ValueError(f"{name} must be above 0, but got {value:g}.")
    if name in _NOT_NEGATIVE and value < 0:
        raise ValueError(f"{name} must not be negative, but got {value:g}.")
    if name == "max_steps" and value < 1 and value != -1:
        raise ValueError(f"max_steps must be at least 1, or -1 for no limit, but got {value:g}.")
    return value


def _refuse_non_finite(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, but got {value:g}.")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        _refuse_non_finite(name, inner)
