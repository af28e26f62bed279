"""One training stage: from a frozen job to a model that is what the job says."""

import gc
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from prunegpt.distill.objective import DistillationObjective
from prunegpt.errors import DivergedError, Interrupted, MaskDriftError, PruneGPTError
from prunegpt.lm import ranks
from prunegpt.lm.blocks import Blocks, collate
from prunegpt.planning.budget import micro_batch
from prunegpt.points import Emit
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.mask import Masks
from prunegpt.training import sharding
from prunegpt.training.adapter import Adapter
from prunegpt.training.job import TrainingJob
from prunegpt.training.trainer import JobTrainer, last_checkpoint, step_of

CHECKPOINT_SECONDS = 600.0
_NONE: Mapping[str, Any] = {}


@dataclass(frozen=True)
class TrainingOutcome:
    """What a training stage came to."""

    steps: int  # optimizer steps
    tokens: int  # trained on
    seconds: float  # wall time, earlier attempts included
    notes: tuple[str, ...] = ()  # of mask updates and of the distillation, each once


def train(
    model: PreTrainedModel,
    blocks: Blocks,
    job: TrainingJob,
    *,
    neutral: Mapping[str, Any] = _NONE,
    work: Path,
    device: torch.device,
    dtype: torch.dtype,
    emit: Emit,
    enforcer: Enforcer,
    pruner: GradualPruner | None = None,
    objective: DistillationObjective | None = None,
    adapter: Adapter | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    stop: Callable[[], bool] = lambda: False,
    keep_checkpoints: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    micro_batch_divisor: int = 1,
) -> TrainingOutcome:
    """Trains the model in place, resuming from the last whole checkpoint in `work` where there is one.

    Several processes (see `lm.ranks`) share the rows of every optimizer step, which sees the rows that it sees with
    one process; all of them end with the same model. The first one writes checkpoints. With the argument `fsdp` each of
    them holds a part of the weights, gradients and moments; the model is on the host before and after.

    Args:
        blocks: tokens, [blocks, block_size].
        job: what is done.
        neutral: further training arguments, which do not decide the result.
        work: folder of this stage's checkpoints.
        emit: takes every point of every curve.
        enforcer: the masks of the model: those of earlier stages, and those that move.
        pruner: moves masks, as the job says.
        objective: distillation; None trains on the model's own cross-entropy.
        adapter: of the model, merged at the end; None: all weights are trained.
        evaluate: measures in mid-training, where `eval_strategy` asks for it; its `loss` selects the best model.
        stop: asked after every step; True ends training with a checkpoint.
        keep_checkpoints: leave all that `save_strategy` asks for; else only the newest, for resuming after a crash.
        checkpoint_seconds: between checkpoints that nobody asked for.
        micro_batch_divisor: train with micro-batches smaller by this factor, with as many times more per step.

    Raises:
        Interrupted: `stop` said so.
        DivergedError: a loss term is not finite or exploded, or a weight is not finite.
        MaskDriftError: at the end the model is not what the job says.
    """
    held = enforcer.closed
    args = training_arguments(
        {**job.arguments, **neutral},
        work,
        seed=job.seed,
        device=device,
        dtype=dtype,
        keep=keep_checkpoints,
        micro_batch_divisor=micro_batch_divisor,
    )
    trainer = JobTrainer(
        job,
        model=sharding.twin_of(model) if args.fsdp else model,
        original=model if args.fsdp else None,
        args=args,
        train_dataset=blocks,
        eval_dataset=blocks if evaluate else None,  # only its presence matters: evaluate() is ours
        data_collator=collate,
        emit=emit,
        enforcer=enforcer,
        pruner=pruner,
        objective=objective,
        measure=evaluate,
        stop=stop,
        checkpoint_seconds=checkpoint_seconds,
        adapter=adapter,
    )
    with closing(trainer):
        outcome = _run(trainer, model, job, held, _agreed(last_checkpoint(work)), adapter)
    if args.fsdp:
        del trainer
        gc.collect()  # FSDP's states and hooks refer to each other
    return outcome


def _run(
    trainer: JobTrainer,
    model: PreTrainedModel,
    job: TrainingJob,
    held: Masks,
    last: Path | None,
    adapter: Adapter | None,
) -> TrainingOutcome:
    """Trains from a checkpoint on, or from the beginning, and checks that the result is what the job says."""
    if last and step_of(last) >= job.steps:  # all is done but publishing; transformers would take another step
        trainer.restore(last)
    else:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    reached = trainer.state.global_step
    if trainer.interrupted:
        raise Interrupted(f"stopped after step {reached} of {job.steps}, checkpoint kept")
    trainer.check_alike()
    if reached != job.steps:
        raise MaskDriftError(
            f"a training must take the optimizer steps that it was planned with, {job.steps}; it took {reached}. "
            "Nothing was published; report the training arguments that were used."
        )
    notes = trainer.notes
    if sharding.is_sharded(trainer.model):
        sharding.join(model, trainer.model, trainer.enforcer)
        notes = (*notes, f"fsdp: each of {ranks.count()} processes held a part of weights, gradients and moments")
    if adapter:
        adapter.merge()
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise DivergedError(
                f"weights must stay finite; {name} is not after step {reached}. Try a lower learning rate."
            )
    trainer.enforcer.verify()
    if job.prune:
        job.prune.verify(trainer.enforcer.masks, held)
    return TrainingOutcome(reached, trainer.tokens, trainer.seconds, notes)


def training_arguments(
    given: dict[str, Any],
    work: Path,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    keep: bool = False,
    micro_batch_divisor: int = 1,
) -> TrainingArguments:
    """The TrainingArguments: the arguments of a spec, and what the program decides."""
    if micro_batch_divisor > 1 or ranks.count() > 1:
        batch, accumulation = micro_batch(given, micro_batch_divisor, ranks.count())
        given |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    defaults: dict[str, Any] = {
        "save_strategy": "no",  # by time, see JobTrainer.on_step_end; a spec may ask for more
        "save_total_limit": None if keep else 2,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
        "ddp_find_unused_parameters": False,  # heads are used outside the model's call
    }
    if ranks.count() == 1:  # there is nobody to share with
        given = {name: value for name, value in given.items() if name not in ("fsdp", "fsdp_config")}
    made = TrainingArguments(
        **{**defaults, **given},
        output_dir=str(work),
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
    )
    if made.n_gpu > 1:
        made._n_gpu = 1  # a process uses one device: replicas have neither masks nor hooks
    return made


def _agreed(checkpoint: Path | None) -> Path | None:
    """The checkpoint that the first process has found."""
    step = step_of(checkpoint) if checkpoint else -1
    (agreed,) = ranks.agree([step])
    if agreed == step:
        return checkpoint
    raise PruneGPTError(
        f"all processes must resume from the same checkpoint; process {ranks.rank()} sees {checkpoint} and process 0 "
        f"that of step {agreed:.0f}. Put the root on a file system that shows all of them the same."
    )
