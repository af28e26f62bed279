"""Tokens that a training stage will see, from its config and the number of blocks of its text. No torch."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prunegpt.errors import DataError, LaunchError, PruningError
from prunegpt.registry import GRADIENTS
from prunegpt.spec.distilling import own_steps, own_steps_problem
from prunegpt.spec.methods import method_entry
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.pruning import update_problems

# Defaults of transformers.TrainingArguments that decide how much is trained.
DEFAULT_EPOCHS = 3.0
_BATCH, _ACCUMULATION, _LOGGED = 8, 1, 500
_LAYER = re.compile(r"\.(\d+)\.")  # in the names of its tensors


def steps(train: Mapping[str, Any], blocks: int | None) -> int | None:
    """Optimizer steps of a stage on one device; None where neither max_steps nor the number of blocks is known."""
    limit = int(train.get("max_steps", -1))
    if limit > 0:
        return limit
    per_epoch = steps_per_epoch(train, blocks)
    return None if per_epoch is None else math.ceil(per_epoch * float(train.get("num_train_epochs", DEFAULT_EPOCHS)))


def steps_per_epoch(train: Mapping[str, Any], blocks: int | None) -> int | None:
    """Optimizer steps of one pass over the text."""
    if blocks is None:
        return None
    batches = math.ceil(_blocks_an_epoch(train, blocks) / _batch(train))
    return max(1, math.ceil(batches / _accumulation(train)))


def count_steps(train: Mapping[str, Any], blocks: int) -> tuple[int, int]:
    """Optimizer steps of a training, and of one pass over its blocks.

    Raises:
        DataError: not one batch can be made of them.
    """
    total, per_epoch = steps(train, blocks), steps_per_epoch(train, blocks)
    if not _blocks_an_epoch(train, blocks) or not total or not per_epoch:
        raise DataError(
            f"a training needs at least one batch; {blocks} blocks make none of {_batch(train)}. Use a smaller "
            "per_device_train_batch_size or block_size, more text, or dataloader_drop_last: false."
        )
    return total, per_epoch


def job_problems(stage: StagePlan, blocks: int | None) -> Iterator[tuple[str, str]]:
    """What is wrong with a training stage once the blocks of its text are counted, each with its field.

    Args:
        blocks: of the training data, as packed; None where they have not been counted.
    """
    if stage.training is None:
        return
    blocks = _limited(stage, blocks)
    train, prune = stage.training.train, stage.training.prune
    asked, known = stage.distill and stage.distill.on_policy, steps(train, blocks)
    if asked and known and (message := own_steps_problem(asked.share, known)):
        yield "on_policy.share", message
    if blocks is None:
        return
    try:
        count, per_epoch = count_steps(train, blocks)
    except DataError as error:
        yield "train.dataloader_drop_last" if "dataloader_drop_last" in train else "", str(error)
        return
    if prune is None:
        return
    try:
        clock = prune.clock_in(count, per_epoch)
    except PruningError as error:
        yield "prune", str(error)
        return
    yield from ((f"prune.{path}", message) for path, message in update_problems(prune, clock))


def own_text_note(stage: StagePlan, blocks: int | None) -> str | None:
    """In how many of its steps the student of a distillation writes its own text; None where it does not.

    Args:
        blocks: as :func:`job_problems`.
    """
    if stage.distill is None or (asked := stage.distill.on_policy) is None:
        return None
    known = steps(stage.distill.train, _limited(stage, blocks))
    if known is None:
        return f"on_policy: the student writes the text of {asked.share:.2%} of the optimizer steps"
    return f"on_policy: the student writes the text of {own_steps(asked.share, known)} of {known} optimizer steps"


def train_tokens(stage: StagePlan, blocks: int | None, counted: float | None = None) -> int | None:
    """Tokens a `finetune` or `distill` stage trains on; 0 for other kinds; None where it cannot be known.

    A pass over the text ends with a smaller step where the blocks do not fill it; one that training does not finish
    consists of full steps.

    Args:
        blocks: of the training data, as packed; None where they have not been counted.
        counted: share of its tokens that the loss counts, where that is not all.
    """
    if stage.training is None or stage.data is None:
        return 0
    train = stage.training.train
    if (counted is None and stage.training.loss_on != "all") or (stage.distill and stage.distill.on_policy):
        return None
    blocks = _limited(stage, blocks)
    count, per_epoch = steps(train, blocks), steps_per_epoch(train, blocks)
    if count is None:
        return None
    a_step = _batch(train) * _accumulation(train)
    if blocks is None or per_epoch is None:
        sequences = count * a_step  # the text may be too short to fill them all
    else:
        an_epoch = _blocks_an_epoch(train, blocks)
        passes, rest = divmod(count, per_epoch)
        sequences = passes * an_epoch + min(rest * a_step, an_epoch)
    tokens = sequences * stage.data.block_size
    return tokens if counted is None else round(tokens * counted)


def evaluates(train: Mapping[str, Any]) -> bool:
    """Whether a training is evaluated while it runs."""
    return str(train.get("eval_strategy", "no")) != "no"


def evaluations(stage: StagePlan, blocks: int | None) -> int | None:
    """How often a stage is evaluated while it trains; None where that cannot be known.

    Args:
        blocks: of the training data, as packed; None where they have not been counted.
    """
    if stage.training is None or not evaluates(stage.training.train):
        return 0
    train = stage.training.train
    count = steps(train, _limited(stage, blocks))
    if count is None:
        return None
    first = 1 if train.get("eval_on_start") else 0
    if str(train["eval_strategy"]) == "epoch":
        per_epoch = steps_per_epoch(train, _limited(stage, blocks))
        return None if per_epoch is None else first + count // per_epoch
    every = float(train.get("eval_steps") or train.get("logging_steps") or _LOGGED)
    return first + count // (math.ceil(every * count) if every < 1 else int(every))


def models_on_disk(stage: StagePlan) -> int:
    """How many times its model a stage has on the disk at its peak, what it publishes included.

    A checkpoint is the weights and, of Adam, two moments; the next one is written before the last one goes, and the
    best one stays where the stage chooses it; with an adapter it is a small part of that. One-shot pruning keeps the
    layers that it has solved, and the sums of a gradient pass; see `passing_on_disk` too. What `keep_checkpoints`
    keeps, and other optimizers, are not counted.
    """
    if stage.prune is not None:
        return 4 if method_entry(stage.prune.method).needs & (GRADIENTS - {"gradients"}) else 2
    if stage.training is None:
        return 1
    if stage.training.adapter and not {"embeddings", "head"} & {*stage.training.adapter.also}:
        return 2
    return 3 * (3 if stage.training.train.get("load_best_model_at_end") else 2)


def passing_on_disk(stage: StagePlan, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes that a pass of gradients one decoder layer at a time has on the disk.

    They are the hidden states in front of each layer, and of oBERT the gradients of each window, in bfloat16, of one
    layer; of all layers where repair goes from the first to the last.

    Args:
        shapes: of the tensors of the model, by name.
    """
    spec = stage.pruning
    needs = method_entry(spec.method).needs if spec else frozenset()
    if spec is None or not ("gradients" in needs or (needs & GRADIENTS and spec.stream is True)):
        return 0
    layers: Counter[str] = Counter()
    widths: Counter[int] = Counter()
    for name, shape in shapes.items():
        if (layer := _LAYER.search(name)) and len(shape) > 1:
            layers[layer[1]] += math.prod(shape)
        elif len(shape) == 1:  # mostly of norms, which are as wide as hidden states
            widths[shape[0]] += 1
    width = max(widths, key=widths.__getitem__, default=0)
    windows = spec.calibration.windows
    number = 4 if stage.storage == "float32" else 2
    states = number * windows * (spec.calibration.length or 1) * width * len(layers)
    if "gradients" not in needs or not layers:
        return states
    return 2 * windows * layers.total() if spec.repair else states + 2 * windows * max(layers.values())


def micro_batch(train: Mapping[str, Any], divisor: int, processes: int = 1) -> tuple[int, int]:
    """Sequences a device takes at a time, and micro-batches an optimizer step, when micro-batches shall be smaller.

    Their product, and with it what a step sees, is that of `divisor` 1. Where it does not divide the micro-batch,
    the next number that does is taken; at most it becomes 1. A last batch that is dropped would be another one with
    smaller micro-batches, so that with `dataloader_drop_last` they stay as they are.

    Args:
        train: the training arguments.
        divisor: how much smaller.
        processes: that share the sequences of a step. Each has fewer micro-batches then, and smaller ones only where
            there are too few.

    Raises:
        LaunchError: the sequences of a step cannot be shared evenly.
    """
    batch, accumulation = _batch(train), _accumulation(train)
    if not train.get("dataloader_drop_last"):
        part = next(number for number in range(min(divisor, batch), batch + 1) if batch % number == 0)
        batch, accumulation = batch // part, accumulation * part
    if processes == 1:
        return batch, accumulation
    share, rest = divmod(batch * accumulation, processes)
    if rest:
        raise LaunchError(
            f"the {batch * accumulation} sequences of an optimizer step must be shared evenly by {processes} "
            f"processes. Make per_device_train_batch_size times gradient_accumulation_steps a multiple of {processes}, "
            f"or train with another number of GPUs."
        )
    own = next(number for number in range(min(batch, share), 0, -1) if share % number == 0)
    return own, share // own


def divided_note(train: Mapping[str, Any], divisor: int) -> tuple[str, ...]:
    """What a stage says of smaller micro-batches; nothing where they are those of its config."""
    before, after = micro_batch(train, 1), micro_batch(train, divisor)
    if before == after:
        return ()
    return (
        f"micro-batches of {after[0]} instead of {before[0]}, {after[1]} instead of {before[1]} to an optimizer step: "
        f"the same {before[0] * before[1]} sequences, in less memory",
    )


def _limited(stage: StagePlan, blocks: int | None) -> int | None:
    """The blocks that are trained on."""
    limit = stage.data.max_train_blocks if stage.data else None
    return blocks if blocks is None or limit is None else min(blocks, limit)


def _blocks_an_epoch(train: Mapping[str, Any], blocks: int) -> int:
    """Blocks of one pass, without an incomplete last batch where that is dropped."""
    return blocks // _batch(train) * _batch(train) if train.get("dataloader_drop_last") else blocks


def _batch(train: Mapping[str, Any]) -> int:
    return int(train.get("per_device_train_batch_size", _BATCH))


def _accumulation(train: Mapping[str, Any]) -> int:
    return int(train.get("gradient_accumulation_steps", _ACCUMULATION))
