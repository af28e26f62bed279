"""The names of transformers.TrainingArguments, read from its source so that checking a spec does not import torch."""

import ast
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunegpt.errors import unknown
from prunegpt.spec.part import REFERENCE

LOGGING_STEPS = 10  # between points of a curve, where the arguments do not say
SAVE_STEPS = 500  # of transformers.TrainingArguments
# Every argument of the installed transformers is in one of three tables.

# 1. What decides the weights: part of the stage key.
DECISIVE = frozenset(
    {
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "average_tokens_across_devices",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "optim",
        "optim_args",
        "optim_target_modules",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "neftune_noise_alpha",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "use_liger_kernel",
        "liger_kernel_config",
        "tf32",
        "full_determinism",
        "dataloader_drop_last",
        "train_sampling_strategy",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
    }
)

# 2. What changes what is written or how fast, never the weights: not part of the key.
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
        "dataloader_prefetch_factor",
        "torch_empty_cache_steps",
        "skip_memory_metrics",
        "include_num_input_tokens_seen",
        "project",
        "fsdp",  # as the number of processes: figures differ by rounding
        "fsdp_config",
    }
)

# Of those, what decides the weights all the same where evaluations in mid-training do.
CHOOSING = frozenset({"eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_strategy", "save_steps"})

_HUB = "publish the finished model folder yourself"
_MEASURED_BY = "use `evaluate`"
_TRACKING = "use `tracking`"
_PRECISION = "use `precision`"
_WHOLE = "a model that does not fit one device is trained with fsdp: true and `launcher: {gpus: N}`"
_RESUMES = "a stage always resumes from its last checkpoint"
_TOGETHER = "the processes that train together are started by `launcher`"

# 3. What cannot be set, and why, or what to use instead.
REFUSED: Mapping[str, str] = {
    "output_dir": "a stage has its folder under the root",
    "seed": "use `seeds`",
    "data_seed": "use `seeds`",
    "do_train": "use `stages`",
    "do_eval": "use `evaluate`",
    "do_predict": "use `evaluate`",
    "per_device_eval_batch_size": "use `evaluate.batch_size`",
    "prediction_loss_only": _MEASURED_BY,
    "eval_do_concat_batches": _MEASURED_BY,
    "eval_use_gather_object": _MEASURED_BY,
    "eval_accumulation_steps": _MEASURED_BY,
    "include_for_metrics": _MEASURED_BY,
    "batch_eval_metrics": _MEASURED_BY,
    "resume_from_checkpoint": _RESUMES,
    "restore_callback_states_from_checkpoint": _RESUMES,
    "ignore_data_skip": "a resumed stage sees the same batches",
    "accelerator_config": "a resumed stage draws the same order",
    "save_only_model": "a stage resumes from its checkpoints, which hold optimizer and schedule",
    "enable_jit_checkpoint": "a stage writes a checkpoint when it is asked to end",
    "report_to": _TRACKING,
    "run_name": "it is the trial's name",
    "trackio_space_id": _TRACKING,
    "trackio_bucket_id": _TRACKING,
    "trackio_static_space_id": _TRACKING,
    "use_cpu": "use `device`",
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "bf16_full_eval": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "label_smoothing_factor": "the loss must stay the cross-entropy that perplexity is made of",
    "auto_find_batch_size": "the batch size decides the result, so it is stated",
    "remove_unused_columns": "a stage trains on token sequences, which have no other columns",
    "label_names": "a stage trains on token sequences, which are their own labels",
    "length_column_name": "all training sequences have the same length",
    "use_cache": "training never reads a cache of keys and values",
    "dataloader_in_order": "the order of the batches decides the result, so it is kept",
    "dataloader_persistent_workers": "a resumed stage draws the same random numbers",
    "dataloader_multiprocessing_context": "blocks are read from a file that every kind of process can open",
    "debug": "a stage stops by itself where its loss or its weights are not finite",
    "deepspeed": _WHOLE,
    "parallelism_config": _WHOLE,
    "local_rank": _TOGETHER,
    "ddp_backend": _TOGETHER,
    "ddp_timeout": _TOGETHER,
}


def chooses(train: Mapping[str, Any]) -> bool:
    """Whether evaluations in mid-training decide the weights: they choose a checkpoint, or lower the learning rate."""
    return bool(train.get("load_best_model_at_end")) or train.get("lr_scheduler_type") in _WATCHING


def neutral_in(train: Mapping[str, Any]) -> frozenset[str]:
    """The arguments that do not decide the weights of a training with these arguments."""
    if not chooses(train):
        return NEUTRAL
    return NEUTRAL - CHOOSING - (frozenset() if train.get("eval_steps") else {"logging_steps"})  # its default


_CODED = ("8bit", "4bit")  # ends of the names of optimizers whose state is codes
_WATCHING = ("reduce_lr_on_plateau", "greedy")  # schedules that use the evaluated metric
_ABOVE_ZERO = frozenset({"num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"})
_NOT_NEGATIVE = frozenset(
    {"learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay", "adam_epsilon"}
)
_BELOW_ONE = frozenset({"adam_beta1", "adam_beta2"})
_SAMPLING = ("random", "sequential")  # blocks of one length have no groups


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
        ValueError: an unknown name, one that is refused, or a value that cannot be.
    """
    known = arguments()
    if name in REFUSED:
        raise ValueError(f"{name} is not taken: {REFUSED[name]}.")
    if name not in known:
        taken = [valid for valid in known if valid not in REFUSED]
        raise ValueError(unknown("training argument", name, taken, REFERENCE))
    if name not in DECISIVE and name not in NEUTRAL:
        raise ValueError(
            f"{name} is new in the installed transformers, and it is not known what it does to a result. "
            f"Leave it out, or install an earlier transformers."
        )
    if name == "train_sampling_strategy" and value not in _SAMPLING:
        raise ValueError(unknown(name, str(value), _SAMPLING))
    annotation = known[name]
    _refuse_non_finite(name, value)
    if name in ("fsdp", "fsdp_config") and value is not None:
        return _sharding(name, value)
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


def _sharding(name: str, value: Any) -> Any:
    """`fsdp` and its settings: FSDP2 alone, and of what it can be set to what is the same to masks."""
    if name == "fsdp":
        if isinstance(value, bool):
            return value
        raise ValueError(f"fsdp must be true or false, got {value!r}. Write fsdp: true, with settings as fsdp_config.")
    if not isinstance(value, Mapping):
        raise ValueError(f"fsdp_config must be settings by name, got {value!r}. Write {{version: 2}}.")
    for key, kind in _FSDP.items():
        if key in value and not isinstance(value[key], kind):
            raise ValueError(f"fsdp_config.{key} must be {_KINDS[kind]}, got {value[key]!r}.")
    if extra := [key for key in value if key not in _FSDP]:
        raise ValueError(f"{unknown('setting of fsdp_config', extra[0], list(_FSDP))} Others are not taken.")
    if value.get("version", 2) != 2:
        raise ValueError(f"fsdp_config.version must be 2, got {value['version']}. Remove it.")
    return value


_FSDP: Mapping[str, type] = {"version": int, "reshard_after_forward": bool, "transformer_layer_cls_to_wrap": list}
_KINDS: Mapping[type, str] = {int: "a number", bool: "true or false", list: "a list of names of classes"}


def training_problems(train: Mapping[str, Any], *, prunes: bool) -> Iterator[tuple[str, str]]:
    """What does not go together in the arguments of a training stage, each with the argument.

    Args:
        train: checked arguments.
        prunes: whether masks change while the model trains.
    """
    yield from _schedule_problems(train)
    if train.get("fsdp_config") and not train.get("fsdp"):
        yield "fsdp_config", "fsdp_config has settings of fsdp, which is off. Set fsdp: true, or remove fsdp_config."
    optimizer = str(train.get("optim", ""))
    if prunes and optimizer.endswith(_CODED):
        yield (
            "optim",
            f"optim must keep moments that can be set to zero where masks change, got {optimizer}: it keeps codes of "
            f"fewer bits. Use adafactor, which takes less memory, or adamw_torch.",
        )
    best = "load_best_model_at_end"
    if not train.get(best):
        return
    if prunes:
        yield (
            best,
            f"{best} goes back to a checkpoint, which has another sparsity while pruning is in progress. Remove it: "
            f"keep_checkpoints publishes all checkpoints, and the stage is measured at its end.",
        )
        return
    when, saved = (str(train.get(name, "no")) for name in ("eval_strategy", "save_strategy"))
    if when == "no" or saved not in (when, "best"):
        yield (
            best,
            f"{best} chooses among checkpoints that were evaluated, so eval_strategy and save_strategy must be the "
            f"same, steps or epoch, got {when} and {saved}.",
        )
    elif saved == "steps":
        every = train.get("eval_steps") or train.get("logging_steps", LOGGING_STEPS)
        between = train.get("save_steps", SAVE_STEPS)
        if (every < 1) != (between < 1) or round(between * 1e6) % max(round(every * 1e6), 1):
            yield (
                "save_steps" if "save_steps" in train else best,
                f"save_steps must be a multiple of eval_steps for {best}, got {between:g} and {every:g}.",
            )
    metric = train.get("metric_for_best_model")
    if metric is not None and str(metric).removeprefix("eval_") not in _MEASURED:
        yield "metric_for_best_model", unknown("measured metric", str(metric), _MEASURED)


def _schedule_problems(train: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a learning-rate schedule needs and is not given."""
    schedule, given = str(train.get("lr_scheduler_type", "linear")), train.get("lr_scheduler_kwargs") or {}
    if schedule in _WATCHING and str(train.get("eval_strategy", "no")) == "no":
        yield (
            "lr_scheduler_type",
            f"{schedule} lowers the learning rate by what is evaluated in mid-training; eval_strategy is no. Set it to "
            "steps or epoch.",
        )
    needed = _NEEDED.get(schedule, ())
    if needed and not any(name in given for name in needed):
        yield (
            "lr_scheduler_type",
            f"{schedule} needs {' or '.join(needed)} in lr_scheduler_kwargs. Add it.",
        )


# What a schedule of transformers cannot do without: one of these.
_NEEDED = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}


def precision_problem(device: str, precision: str) -> str | None:
    """Why a model cannot be trained in a precision; None where it can, or the device is found out later."""
    if precision == "float16" and device == "cpu":
        return (
            "float16 cannot be trained in on a CPU: its gradients underflow, and loss scaling needs a GPU. "
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
    raise ValueError(f"{name} must be {annotation}, got {value!r} ({type(value).__name__}).")


def _in_range(name: str, value: int | float) -> int | float:
    if name in _ABOVE_ZERO and value <= 0:
        raise ValueError(f"{name} must be above 0, got {value:g}.")
    if name in _NOT_NEGATIVE and value < 0:
        raise ValueError(f"{name} must not be negative, got {value:g}.")
    if name in _BELOW_ONE and not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value:g}.")
    if name == "max_steps" and value < 1 and value != -1:
        raise ValueError(f"max_steps must be at least 1, or -1 for no limit, got {value:g}.")
    return value


def _refuse_non_finite(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value:g}.")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        _refuse_non_finite(name, inner)
