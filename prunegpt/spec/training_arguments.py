"""The names of transformers.TrainingArguments, read from its source so that checking a spec does not import torch."""

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunegpt.errors import unknown

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
    "push_to_hub": "nothing: publish the finished model folder yourself",
    "label_smoothing_factor": "nothing: the loss must stay the cross-entropy that perplexity is made of",
    "auto_find_batch_size": "nothing: the batch size decides the result, so it is stated",
    "remove_unused_columns": "nothing: the columns are ours",
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
        "save_only_model",
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


@cache
def arguments() -> Mapping[str, str]:
    """Field name -> annotation, as written in the installed transformers.

    Raises:
        ImportError: transformers is not installed.
    """
    package = find_spec("transformers")
    if package is None or package.origin is None:
        raise ImportError("transformers is not installed")
    source = Path(package.origin).with_name("training_args.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments":
            return {
                item.target.id: ast.unparse(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    raise ImportError("transformers has no TrainingArguments")


def check_arguments(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Checks names and plain types of training arguments.

    Raises:
        ValueError: an unknown name, one that PruneGPT sets itself, or a value of the wrong plain type.
    """
    if not given:
        return given
    known = arguments()
    for name, value in given.items():
        if name in OURS:
            raise ValueError(f"{name} is set by PruneGPT: use {OURS[name]}.")
        if name not in known:
            raise ValueError(unknown("training argument", name, [valid for valid in known if valid not in OURS]))
        _check_type(name, value, known[name])
    return given


def _check_type(name: str, value: Any, annotation: str) -> None:
    parts = {part.strip() for part in annotation.split("|")}
    if value is None and "None" in parts:
        return
    if parts <= {"int", "float", "bool", "None"}:
        if "bool" in parts and isinstance(value, bool):
            return
        numbers: tuple[type, ...] = (int, float) if "float" in parts else (int,) if "int" in parts else ()
        if isinstance(value, numbers) and not isinstance(value, bool):
            return
        raise ValueError(f"{name} must be {annotation}, but got {value!r} ({type(value).__name__}).")
