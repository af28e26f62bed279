"""Values of every argument of the installed transformers, with what they need beside them."""

from collections.abc import Mapping
from typing import Any

# One or several values other than the default, with what they need beside them.
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


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
    "eval_strategy": (EVALUATED, {"eval_strategy": "epoch"}),
    "eval_steps": ({"eval_strategy": "steps", "eval_steps": 1},),
    "eval_delay": ({**EVALUATED, "eval_delay": 3},),
    "eval_on_start": ({**EVALUATED, "eval_on_start": True},),
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
    "fsdp": ({"fsdp": True},),  # of one process, which has nobody to share with
    "fsdp_config": ({"fsdp": True, "fsdp_config": {"reshard_after_forward": False}},),
}


BEST = {**EVALUATED, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}


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
    "load_best_model_at_end": BEST,
    "metric_for_best_model": {**BEST, "metric_for_best_model": "perplexity"},
    "greater_is_better": {**BEST, "greater_is_better": True},
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
