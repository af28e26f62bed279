"""Every flag of transformers' run_clm.py example is taken by `prunegpt train`, or refused with what to type."""

import dataclasses
import inspect
from typing import Any

import pytest
from transformers import TrainingArguments

from prunegpt.cli.example_flags import FIXED, PATHS, ExampleFlags, example_flags
from prunegpt.cli.train import train
from prunegpt.errors import PruneGPTError
from prunegpt.spec.training_arguments import DECISIVE, NEUTRAL, REFUSED

# Fields of the dataclasses of the example at transformers 4.57, and of older ones.
MODEL = (
    *("model_name_or_path", "model_type", "config_overrides", "config_name", "tokenizer_name", "cache_dir"),
    *("use_fast_tokenizer", "model_revision", "token", "trust_remote_code", "dtype", "torch_dtype"),
    *("use_auth_token", "low_cpu_mem_usage"),
)
DATA = (
    *("dataset_name", "dataset_config_name", "train_file", "validation_file", "max_train_samples"),
    *("max_eval_samples", "streaming", "block_size", "overwrite_cache", "validation_split_percentage"),
    *("preprocessing_num_workers", "keep_linebreaks"),
)
TRAINING = [field.name for field in dataclasses.fields(TrainingArguments)]
OWN = set(inspect.signature(train).parameters)  # have an option
SPELLINGS = [str, lambda name: name.replace("_", "-")]


def test_the_lists_are_those_of_the_example() -> None:
    assert len(TRAINING) > 100
    assert {*MODEL, *DATA} <= OWN | PATHS.keys() | FIXED.keys()
    assert not PATHS.keys() & FIXED.keys()


@pytest.mark.parametrize("name", [name for name in (*MODEL, *DATA, *TRAINING) if name not in OWN])
def test_a_flag_is_taken_or_refused_with_the_reason(name: str) -> None:
    for spelling in SPELLINGS:
        for value in (["3"], []):
            arguments, expected = [f"--{spelling(name)}", *value], 3 if value else True
            taken = name in DECISIVE | NEUTRAL | PATHS.keys() or (name in FIXED and FIXED[name][0] is expected)
            if not taken:
                with pytest.raises(
                    PruneGPTError, match=rf"^--{name} is not taken: .*(Leave it out|=VALUE)\.$"
                ) as raised:
                    example_flags(arguments)
                assert ("use `" in str(raised.value)) == ("Write --set base." in str(raised.value))
                continue
            found = example_flags(arguments)
            assert found.train == ({name: expected} if name in DECISIVE | NEUTRAL else {})
            assert found.fields == ({PATHS[name]: expected} if name in PATHS else {})


def test_values_are_read_as_the_example_reads_them() -> None:
    found = example_flags(
        [
            *("--weight_decay", "0.01", "--warmup-steps=5", "--adam_epsilon", "1e-7", "--gradient_checkpointing"),
            *("--lr_scheduler_kwargs", '{"min_lr": 1e-5}', "--logging_first_step", "False", "--optim", "adamw_torch"),
            *("--no_dataloader_pin_memory", "--optim_target_modules", "attn", "mlp", "--report_to", "none"),
            *("--keep_linebreaks", "True", "--max-train-samples", "10", "--model_revision=a-b"),
        ]
    )
    assert found.train == {
        "weight_decay": 0.01,
        "warmup_steps": 5,
        "adam_epsilon": 1e-7,
        "gradient_checkpointing": True,
        "lr_scheduler_kwargs": {"min_lr": 1e-5},
        "logging_first_step": False,
        "optim": "adamw_torch",
        "dataloader_pin_memory": False,
        "optim_target_modules": ["attn", "mlp"],
    }
    base: dict[str, Any] = {"model": "gpt2", "data": {"path": "builtin:text"}}
    found.into(base)
    assert base == {
        "model": {"source": "gpt2", "revision": "a-b"},
        "data": {"path": "builtin:text", "max_train_blocks": 10},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fp16"], "--fp16 is not taken: use `precision`. Write --set base.precision=VALUE."),
        (["--deepspeed", "ds.json"], "--deepspeed is not taken: a model that does not fit one device"),
        (["--report_to", "wandb"], "--report_to is not taken: use `tracking`"),
        (["--weight_decai", "1"], "Did you mean 'weight_decay'?"),
        (["--weight_decai", "1"], "Other fields of a spec are set by --set"),
        (["stray", "--weight_decay", "1"], "stray belongs to no flag"),
        (["--no_keep_linebreaks"], "lines keep their ends"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(PruneGPTError) as raised:
        example_flags(arguments)
    assert message in str(raised.value)


def test_all_that_is_wrong_comes_at_once() -> None:
    with pytest.raises(PruneGPTError) as raised:
        example_flags(["--fp16", "--nothing", "--deepspeed", "x"])
    assert len(str(raised.value).splitlines()) == 3


def test_nothing_is_no_flags() -> None:
    assert example_flags([]) == ExampleFlags()
    assert not REFUSED.keys() & (DECISIVE | NEUTRAL)
