"""GPT-2's shape with random weights, tokens, and the plain Trainer setup of the transformers causal-LM example."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from prunegpt.lm.blocks import Blocks
from prunegpt.planning.budget import count_steps
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.masks import masks_hash
from prunegpt.training import TrainingJob, train
from tests.bench.harness import Settings

ENDLESS = 1_000_000  # optimizer steps of a run that is ended from outside
TRAIN = {"max_steps": ENDLESS, "lr_scheduler_type": "constant", "logging_steps": 500}


def gpt2(settings: Settings, *, positions: int, seed: int = 0, **changes: Any) -> GPT2LMHeadModel:
    """GPT-2 small as its config has it, 124 M parameters; where it has to be quick, 2 narrow blocks."""
    torch.manual_seed(seed)
    small = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(**{**(small if settings.quick else {}), "n_positions": positions, **changes})
    return GPT2LMHeadModel(config).to(settings.device)


def random_blocks(model: GPT2LMHeadModel, count: int, length: int) -> np.ndarray[Any, Any]:
    """Tokens [count, length]."""
    return np.random.default_rng(0).integers(0, model.config.vocab_size, (count, length), dtype=np.int32)


def example_dataset(tokens: np.ndarray[Any, Any]) -> Dataset:
    """As the example has its blocks: lists of tokens, and the labels a copy of them."""
    rows = tokens.tolist()
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows], "labels": rows})


class EndOfStep(TrainerCallback):
    """Calls back at the end of every optimizer step."""

    def __init__(self, pause: Callable[[], None]) -> None:
        self.pause = pause

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.pause()


def example_arguments(settings: Settings, work: Path, batch: int, **more: Any) -> TrainingArguments:
    """The arguments that the example leaves at their defaults, and those that both sides are given."""
    given = {**TRAIN, "per_device_train_batch_size": batch, "save_strategy": "no", "disable_tqdm": True, **more}
    return TrainingArguments(
        output_dir=str(work), report_to=[], use_cpu=settings.device == "cpu", dataloader_pin_memory=False, **given
    )


def example_training(
    settings: Settings, model: GPT2LMHeadModel, tokens: np.ndarray[Any, Any], *, batch: int, trainer: Any = Trainer
) -> Callable[[Callable[[], None]], object]:
    """The example's fine-tuning, as a loop for `harness.Stepwise`."""

    def run(pause: Callable[[], None]) -> object:
        return trainer(
            model=model,
            args=example_arguments(settings, settings.work / "example", batch),
            train_dataset=example_dataset(tokens),
            data_collator=default_data_collator,
            callbacks=[EndOfStep(pause)],
        ).train()

    return run


def our_training(
    settings: Settings,
    model: GPT2LMHeadModel,
    tokens: np.ndarray[Any, Any],
    *,
    batch: int,
    name: str,
    dtype: torch.dtype = torch.float32,
    arguments: Mapping[str, Any] | None = None,
    enforcer: Enforcer | None = None,
    pruner: GradualPruner | None = None,
    **parts: Any,
) -> Callable[[Callable[[], None]], object]:
    """Our fine-tuning with the same arguments, its points written as a trial writes them."""
    from prunegpt.points import Point, PointWriter
    from prunegpt.records import finite

    work = settings.work / name
    work.mkdir(parents=True, exist_ok=True)

    def run(pause: Callable[[], None]) -> object:
        points = PointWriter(work / "points.jsonl")

        def emit(step: int, epoch: float, curve: str, value: float, count: int) -> None:
            points.write(Point(stage=0, step=step, epoch=epoch, name=curve, value=finite(value), time=0, tokens=count))

        def stop() -> bool:
            pause()
            return False

        given = {**TRAIN, "logging_steps": 10, "per_device_train_batch_size": batch, **(arguments or {})}
        steps, per_epoch = count_steps(given, len(tokens))
        masks = pruner.enforcer if pruner else enforcer or Enforcer({})
        return train(
            model,
            Blocks(tokens),
            TrainingJob(
                key=name,
                steps=steps,
                per_epoch=per_epoch,
                seed=42,
                arguments=given,
                prune=pruner.job if pruner else None,
                held=masks_hash(masks.masks),
            ),
            work=work,
            device=torch.device(settings.device),
            dtype=dtype,
            emit=emit,
            stop=stop,
            enforcer=masks,
            pruner=pruner,
            **parts,
        )

    return run
