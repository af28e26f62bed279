"""Tokens that a training stage will see, from its config and the number of blocks of its text. No torch."""

import math
from collections.abc import Mapping
from typing import Any

from prunegpt.spec.plan import StagePlan

# Defaults of transformers.TrainingArguments that decide how much is trained.
DEFAULT_EPOCHS = 3.0
_BATCH, _ACCUMULATION = 8, 1


def steps(train: Mapping[str, Any], blocks: int | None) -> int | None:
    """Optimizer steps of a stage on one device; None where neither max_steps nor the number of blocks is known."""
    limit = train.get("max_steps", -1)
    if limit > 0:
        return int(limit)
    per_epoch = steps_per_epoch(train, blocks)
    return None if per_epoch is None else math.ceil(per_epoch * float(train.get("num_train_epochs", DEFAULT_EPOCHS)))


def steps_per_epoch(train: Mapping[str, Any], blocks: int | None) -> int | None:
    """Optimizer steps of one pass over the text."""
    if blocks is None:
        return None
    batch = train.get("per_device_train_batch_size", _BATCH)
    batches = blocks // batch if train.get("dataloader_drop_last") else math.ceil(blocks / batch)
    return max(1, math.ceil(batches / train.get("gradient_accumulation_steps", _ACCUMULATION)))


def train_tokens(stage: StagePlan, blocks: int | None) -> int | None:
    """Tokens a `finetune` or `distill` stage trains on; 0 for other kinds; None where it cannot be known."""
    if stage.training is None or stage.data is None:
        return 0
    train = stage.training.train
    if stage.data.max_train_blocks and blocks is not None:
        blocks = min(blocks, stage.data.max_train_blocks)
    count = steps(train, blocks)
    if count is None:
        return None
    batch = train.get("per_device_train_batch_size", _BATCH) * train.get("gradient_accumulation_steps", _ACCUMULATION)
    most = None if blocks is None else math.ceil(count / (steps_per_epoch(train, blocks) or 1) * blocks)
    examples = count * batch if most is None else min(count * batch, most)
    return int(examples * stage.data.block_size)
