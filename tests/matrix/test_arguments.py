"""Every argument of the installed transformers: in a key, without effect on the bits, or refused with its reason."""

import random
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning import rehearsed
from prunegpt.planning.resolve import plan_data
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.training_arguments import CHOOSING, DECISIVE, NEUTRAL, REFUSED, choices, chooses
from tests.e2e.conftest import text_files
from tests.matrix.cases import BATCH, BLOCKS, EPOCHS, SCHEDULERS
from tests.matrix.runs import Result, run
from tests.matrix.test_matrix import STEPS, prepared, small_model

__all__ = ["prepared", "small_model", "text_files"]

# One or several values other than the default, with what they need beside them.
_STEPS = {"eval_strategy": "steps", "eval_steps": 2}
_LOADED = {"dataloader_num_workers": 1}
NEUTRAL_VALUES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "logging_strategy": ({"logging_strategy": "no"}, {"logging_strategy": "epoch"}),
    "logging_steps": ({"logging_steps": 1}, {"logging_steps": 1000}),
    "logging_first_step": ({"logging_first_step": True},),
    "logging_nan_inf_filter": ({"logging_nan_inf_filter": True},),
    "log_level": ({"log_level": "debug"},),
    "log_level_replica": ({"log_level_replica": "error"},),
    "log_on_each_node": ({"log_on_each_node": False},),
    "disable_tqdm": ({"disable_tqdm": False},),
    "eval_strategy": (_STEPS, {"eval_strategy": "epoch"}),
    "eval_steps": ({"eval_strategy": "steps", "eval_steps": 1},),
    "eval_delay": ({**_STEPS, "eval_delay": 3},),
    "eval_on_start": ({**_STEPS, "eval_on_start": True},),
    "save_strategy": ({"save_strategy": "epoch"}, {"save_strategy": "steps", "save_steps": 1}),
    "save_steps": ({"save_strategy": "steps", "save_steps": 5},),
    "save_total_limit": ({"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1},),
    "save_on_each_node": ({"save_strategy": "steps", "save_steps": 2, "save_on_each_node": True},),
    "dataloader_num_workers": (_LOADED,),
    "dataloader_pin_memory": ({"dataloader_pin_memory": False},),
    "dataloader_prefetch_factor": ({**_LOADED, "dataloader_prefetch_factor": 3},),
    "torch_empty_cache_steps": ({"torch_empty_cache_steps": 1},),
    "skip_memory_metrics": ({"skip_memory_metrics": False},),
    "include_num_input_tokens_seen": ({"include_num_input_tokens_seen": "all"},),
    "project": ({"project": "other"},),
}
_BEST = {**_STEPS, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}
DECISIVE_VALUES: Mapping[str, Mapping[str, Any]] = {
    "per_device_train_batch_size": {"per_device_train_batch_size": 1},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "average_tokens_across_devices": {"average_tokens_across_devices": False},
    "num_train_epochs": {"num_train_epochs": 4},
    "max_steps": {"max_steps": 9},
    "learning_rate": {"learning_rate": 0.001},
    "lr_scheduler_type": {"lr_scheduler_type": "cosine"},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
    "warmup_steps": {"warmup_steps": 3},
    "optim": {"optim": "adamw_torch"},
    "optim_args": {"optim": "rmsprop", "optim_args": "momentum=0.5"},
    "optim_target_modules": {"optim_target_modules": ["mlp"]},
    "weight_decay": {"weight_decay": 0.1},
    "adam_beta1": {"adam_beta1": 0.8},
    "adam_beta2": {"adam_beta2": 0.9},
    "adam_epsilon": {"adam_epsilon": 1e-6},
    "max_grad_norm": {"max_grad_norm": 0.5},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "activation_checkpointing": {"activation_checkpointing": True},
    "activation_checkpointing_kwargs": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    },
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "gradient_checkpointing_kwargs": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "full_determinism": {"full_determinism": True},
    "dataloader_drop_last": {"dataloader_drop_last": True},
    "train_sampling_strategy": {"train_sampling_strategy": "sequential"},
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": {**_BEST, "metric_for_best_model": "perplexity"},
    "greater_is_better": {**_BEST, "greater_is_better": True},
    "ddp_find_unused_parameters": {"ddp_find_unused_parameters": True},
    "ddp_bucket_cap_mb": {"ddp_bucket_cap_mb": 1},
    "ddp_broadcast_buffers": {"ddp_broadcast_buffers": False},
    "ddp_static_graph": {"ddp_static_graph": True},
}
# What this machine cannot run; their keys are looked at all the same.
ELSEWHERE: Mapping[str, Mapping[str, Any]] = {
    "tf32": {"tf32": True},  # an NVIDIA GPU
    "torch_compile": {"torch_compile": True},  # minutes of compiling
    "torch_compile_backend": {"torch_compile": True, "torch_compile_backend": "eager"},
    "torch_compile_mode": {"torch_compile": True, "torch_compile_mode": "default"},
    "use_liger_kernel": {"use_liger_kernel": True},  # liger-kernel
    "liger_kernel_config": {"use_liger_kernel": True, "liger_kernel_config": {"rope": False}},
}


def plan_of(train: Mapping[str, Any], model: Path, texts: dict[str, str], root: Root, **evaluate: Any) -> TrialPlan:
    base = {
        "model": str(model),
        "data": {"files": texts, "block_size": 16, "max_train_blocks": BLOCKS},
        "evaluate": {"max_windows": 2, "block_size": 16, **evaluate},
        "train": {"per_device_train_batch_size": BATCH, "learning_rate": 0.003, "logging_steps": 5},
    }
    stages: list[Any] = [
        {"prune": {"method": "magnitude", "sparsity": 0.3}},
        {"finetune": {"train": {"num_train_epochs": EPOCHS, **train}}},
    ]
    return plan_data(
        {"name": "matrix", "base": base, "trials": [{"name": "case", "stages": stages}]}, root=root
    ).trials[0]


def outcome(
    way: Any, train: Mapping[str, Any], model: Path, texts: dict[str, str], prepared: Path, folder: Path
) -> Result:
    shutil.copytree(prepared, folder)
    root = Root(folder)
    return run([plan_of(train, model, texts, root)], root, way, random.Random(str(train)).randrange(1, STEPS // 2))


@pytest.fixture(scope="session")
def usual(
    small_model: Path, text_files: dict[str, str], prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    folder = tmp_path_factory.mktemp("usual") / "runs"
    found = outcome("undisturbed", {}, small_model, text_files, prepared, folder)
    assert found.record.state == "finished", found.record.trace
    return found


def test_every_argument_of_the_installed_transformers_is_in_one_table() -> None:
    from transformers import TrainingArguments

    tables = [set(DECISIVE), set(NEUTRAL), set(REFUSED)]
    assert set.union(*tables) == {item.name for item in fields(TrainingArguments) if item.init}
    assert sum(map(len, tables)) == len(set.union(*tables))
    assert CHOOSING < NEUTRAL


def test_every_argument_that_is_taken_has_a_value_here() -> None:
    assert set(NEUTRAL_VALUES) == NEUTRAL
    assert {*DECISIVE_VALUES, *ELSEWHERE} == DECISIVE
    assert all(
        name in value for name, values in NEUTRAL_VALUES.items() for value in values if name != "dataloader_num_workers"
    )


@pytest.mark.parametrize(
    "value", [value for values in NEUTRAL_VALUES.values() for value in values], ids=lambda value: str(value)
)
def test_a_neutral_argument_changes_no_bit_whether_or_not_it_is_killed(
    value: Mapping[str, Any],
    usual: Result,
    small_model: Path,
    text_files: dict[str, str],
    prepared: Path,
    tmp_path: Path,
) -> None:
    found = outcome("killed", value, small_model, text_files, prepared, tmp_path / "runs")
    assert found.record.state == "finished", found.record.trace
    assert found.files == usual.files
    assert found.evaluations == usual.evaluations
    assert found.stages == usual.stages


@pytest.mark.parametrize("name", sorted(DECISIVE))
def test_a_decisive_argument_is_in_the_key(
    name: str, small_model: Path, text_files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsed, "_asked", lambda _: "")  # also what this machine could not begin with
    given = dict({**DECISIVE_VALUES, **ELSEWHERE}[name])
    with_it = plan_of(given, small_model, text_files, Root(tmp_path)).key
    del given[name]
    if name == "load_best_model_at_end":
        given["metric_for_best_model"] = "loss"
    assert with_it != plan_of(given, small_model, text_files, Root(tmp_path)).key


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DECISIVE_VALUES))
def test_a_decisive_argument_outlasts_a_stop_and_a_kill(
    name: str, small_model: Path, text_files: dict[str, str], prepared: Path, tmp_path: Path
) -> None:
    found = {
        way: outcome(way, DECISIVE_VALUES[name], small_model, text_files, prepared, tmp_path / way)
        for way in ("undisturbed", "stopped", "killed")
    }
    assert found["undisturbed"].record.state == "finished", found["undisturbed"].record.trace
    for way in ("stopped", "killed"):
        assert found[way].files == found["undisturbed"].files, way
        assert found[way].evaluations == found["undisturbed"].evaluations, way


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_argument_is_refused_with_its_reason(
    name: str, small_model: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of({name: True}, small_model, text_files, Root(tmp_path))
    assert f"{name} is not taken: {REFUSED[name]}" in str(caught.value)


@pytest.mark.parametrize("scheduler", choices()["SchedulerType"])
@pytest.mark.parametrize("choosing", [False, True])
@pytest.mark.parametrize("name", sorted({*CHOOSING, "logging_steps"}))
def test_where_evaluations_decide_what_decides_evaluations_is_in_the_key(
    name: str, choosing: bool, scheduler: str, small_model: Path, text_files: dict[str, str], tmp_path: Path
) -> None:
    """A schedule that watches a metric, and the choice of the best checkpoint, follow what is measured and when."""
    given = {**SCHEDULERS[f"scheduler {scheduler}"], **(_BEST if choosing else _STEPS)}
    if not choosing:
        given |= {"save_strategy": "steps", "save_steps": 2}
    if name == "logging_steps":  # the usual value of eval_steps
        del given["eval_steps"]
        given["logging_steps"] = 2
    other = {**given, **_OTHER[name]}
    decide = choosing or scheduler in ("reduce_lr_on_plateau", "greedy")
    assert chooses(given) is decide
    keys = {plan_of(train, small_model, text_files, Root(tmp_path)).key for train in (given, other)}
    assert (len(keys) == 2) is decide
    measured = {plan_of(given, small_model, text_files, Root(tmp_path), max_windows=count).key for count in (1, 2)}
    assert (len(measured) == 2) is decide


_OTHER: Mapping[str, Mapping[str, Any]] = {
    "eval_strategy": {"eval_strategy": "epoch", "save_strategy": "epoch"},
    "eval_steps": {"eval_steps": 1},
    "eval_delay": {"eval_delay": 2},
    "eval_on_start": {"eval_on_start": True},
    "save_strategy": {"eval_strategy": "epoch", "save_strategy": "epoch"},
    "save_steps": {"save_steps": 4},
    "logging_steps": {"logging_steps": 1},
}
