"""transformers.Trainer, wired with masks, distillation and points.

Nothing here computes a perplexity or a mask: the callback asks the parts that do, at the right moment of a step:
masks change before it, gradients are masked before clipping, weights after the optimizer.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunegpt.distill.guard import DivergenceGuard
from prunegpt.distill.objective import DistillationObjective
from prunegpt.errors import MaskDriftError, PruneGPTError
from prunegpt.lm import ranks
from prunegpt.lm.blocks import Blocks, SharedSampler, collate
from prunegpt.planning.budget import micro_batch
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.masks import load_masks, masks_hash, save_masks
from prunegpt.recipes.learning_rate import LearningRateCurve
from prunegpt.root import write_json

MARKER = "prunegpt.json"  # written last into a checkpoint: what lacks it was cut by a crash
PRUNER_STATE = "pruner.safetensors"
MASKS = "masks.safetensors"  # all masks, packed and hashed
CHECKPOINT_SECONDS = 600.0
TOTAL_STEPS = "total_steps"  # the point that says how long a stage will be

Emit = Callable[[int, float, str, float, int], None]  # step, epoch, name, value, tokens


class Interrupted(PruneGPTError):
    """Training was asked to stop; a checkpoint was written first."""


@dataclass(frozen=True)
class Outcome:
    """What a training stage came to."""

    steps: int  # optimizer steps
    tokens: int  # trained on
    seconds: float  # wall time, earlier attempts included


def train(
    model: PreTrainedModel,
    blocks: Blocks,
    *,
    arguments: Mapping[str, Any],
    work: Path,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    emit: Emit,
    enforcer: Enforcer | None = None,
    pruner: Callable[[int, int], GradualPruner] | None = None,
    objective: DistillationObjective | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    stop: Callable[[], bool] = lambda: False,
    learning_rate: LearningRateCurve | None = None,
    keep_checkpoints: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    divide: int = 1,
) -> Outcome:
    """Trains the model in place, going on from the last whole checkpoint in `work` where there is one.

    Several processes (see `lm.ranks`) share the rows of every optimizer step, which sees the rows that it sees
    with one process; all of them end with the same model. The first one writes checkpoints.

    Args:
        blocks: tokens, [blocks, block_size].
        arguments: names and values of transformers.TrainingArguments.
        work: folder of this stage's checkpoints.
        emit: takes every point of every curve.
        enforcer: keeps weights at zero whose masks do not move.
        pruner: called with (steps in all, steps an epoch), makes what moves the other masks.
        objective: distillation; None trains on the model's own cross-entropy.
        evaluate: measures in mid-training, where `eval_strategy` asks for it; its `loss` selects the best model.
        stop: asked after every step; True ends training with a checkpoint.
        learning_rate: a curve that is followed instead of `lr_scheduler_type`.
        keep_checkpoints: leave all that `save_strategy` asks for; else only the newest, for going on after a crash.
        checkpoint_seconds: between checkpoints that nobody asked for.
        divide: train with micro-batches smaller by this factor, and as many times more of them to an optimizer step.

    Raises:
        Interrupted: `stop` said so.
        DivergedError: a loss term is not finite or exploded.
    """
    guard = DivergenceGuard(model.get_input_embeddings().weight.shape[0])
    wiring = _Wiring(guard, emit, enforcer, pruner, objective, evaluate, stop, checkpoint_seconds)
    drop = micro_batch(arguments, 1)[0] if arguments.get("dataloader_drop_last") else 0
    arguments = _divided(arguments, divide)
    trainer = _Trainer(
        wiring,
        drop,
        model=model,
        args=_arguments(arguments, work, seed=seed, device=device, dtype=dtype, keep=keep_checkpoints),
        train_dataset=blocks,
        eval_dataset=blocks if evaluate else None,  # only its presence matters: evaluate() is ours
        data_collator=collate,
        callbacks=[wiring],
    )
    wiring.trainer = trainer
    trainer.curve = learning_rate
    last = _agreed(last_checkpoint(work))
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if wiring.interrupted:
        raise Interrupted(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}, checkpoint kept"
        )
    wiring.mask_weights()
    wiring.check_alike()
    return Outcome(trainer.state.global_step, wiring.tokens, wiring.seconds)


def _divided(arguments: Mapping[str, Any], divide: int) -> Mapping[str, Any]:
    if divide == 1 and ranks.count() == 1:
        return arguments
    batch, accumulation = micro_batch(arguments, divide, ranks.count())
    return {**arguments, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}


def _arguments(
    given: Mapping[str, Any], work: Path, *, seed: int, device: torch.device, dtype: torch.dtype, keep: bool
) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "save_strategy": "no",  # by time, see _Wiring.on_step_end; a spec may ask for more
        "save_total_limit": None if keep else 2,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
        "ddp_find_unused_parameters": False,  # heads are used outside the model's call
    }
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
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else -1
    (agreed,) = ranks.agree([step])
    if agreed == step:
        return checkpoint
    raise PruneGPTError(
        f"all processes must go on from the same checkpoint, but process {ranks.rank()} sees {checkpoint} and process "
        f"0 that of step {agreed:.0f}. Put the root on a file system that shows all of them the same."
    )


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written whole."""
    whole = [folder for folder in work.glob("checkpoint-*") if (folder / MARKER).exists()]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


class _Trainer(Trainer):
    """Loss from the objective, gradients masked before clipping, evaluation by our own measure."""

    def __init__(self, wiring: "_Wiring", drop: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._wiring = wiring
        self._drop = drop  # where positive, an epoch uses a multiple of so many rows
        if wiring.objective:
            self.loss_is_scaled_for_ga = None
            self.model_accepts_loss_kwargs = True  # so that all micro-batches share one denominator

    curve: LearningRateCurve | None = None
    control: TrainerControl

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The order of one process, whose batches several processes share."""
        sampler = super()._get_train_sampler(train_dataset)
        if ranks.count() == 1 or sampler is None:
            return sampler
        rows = len(self.train_dataset)
        if isinstance(sampler, torch.utils.data.RandomSampler):  # as accelerate does where there is one process
            sampler = SeedableRandomSampler(self.train_dataset, data_seed=self.args.data_seed)
        batch = self.args.per_device_train_batch_size * ranks.count()
        return SharedSampler(sampler, batch, rows // self._drop * self._drop if self._drop else rows)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The scheduler of the arguments, or one that follows the curve of a recipe."""
        if self.curve is None:
            return super().create_scheduler(num_training_steps, optimizer)
        curve, base = self.curve, self.args.learning_rate
        per_epoch = self._wiring.steps_per_epoch()

        def factor(step: int) -> float:
            rate = curve.learning_rate_at(step, steps_per_epoch=per_epoch)
            return 1.0 if rate is None else rate / base

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        wiring = self._wiring
        block, rows = inputs.pop("block"), inputs.pop("rows", None)
        own, length = inputs["input_ids"].shape
        wiring.count((own if rows is None else int(rows)) * length)
        if wiring.objective is None:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            wiring.note({"ce": (loss[0] if return_outputs else loss) / ranks.count()})
            return loss
        loss, terms = wiring.objective(model, {**inputs, "block": block}, num_items_in_batch)
        wiring.note(terms)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, tokens were summed
        return (loss, {}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._wiring.after_backward()
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        measured = self._wiring.measure(self.model)
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Wiring(TrainerCallback):
    """The moments of a step at which masks, terms and checkpoints have to be seen to."""

    trainer: _Trainer

    def __init__(
        self,
        guard: DivergenceGuard,
        emit: Emit,
        enforcer: Enforcer | None,
        pruner: Callable[[int, int], GradualPruner] | None,
        objective: DistillationObjective | None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None,
        stop: Callable[[], bool],
        checkpoint_seconds: float,
    ) -> None:
        self.guard = guard
        self.emit = emit
        self.enforcer = enforcer
        self.make_pruner = pruner
        self.pruner: GradualPruner | None = None
        self.objective = objective
        self.evaluate = evaluate
        self.stop = stop
        self.checkpoint_seconds = checkpoint_seconds
        self.tokens = 0
        self.interrupted = False
        self._earlier = 0.0  # seconds of earlier attempts
        self._started = self._saved = time.monotonic()
        self._terms: dict[str, Tensor] = {}
        self._logged = 0  # steps when the terms were last taken

    @property
    def seconds(self) -> float:
        return self._earlier + time.monotonic() - self._started

    def steps_per_epoch(self) -> int:
        batches: int = len(self.trainer.get_train_dataloader())
        return math.ceil(batches / int(self.trainer.args.gradient_accumulation_steps))

    def count(self, tokens: int) -> None:
        self.tokens += tokens

    def note(self, terms: Mapping[str, Tensor]) -> None:
        """Adds loss terms up, each process its share; they are averaged over the steps until the next log."""
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, torch.zeros((), device=value.device)) + value.detach()

    def after_backward(self) -> None:
        if self.pruner:
            self.pruner.accumulate()
        for enforcer in self._enforcers():
            enforcer.mask_gradients()

    def mask_weights(self) -> None:
        for enforcer in self._enforcers():
            enforcer.mask_weights()

    def _enforcers(self) -> Iterator[Enforcer]:
        if self.enforcer:
            yield self.enforcer
        if self.pruner:
            yield self.pruner.enforcer

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        if self.evaluate is None:
            raise PruneGPTError(
                "eval_strategy asks for evaluation while training, but this stage has nothing to measure on."
            )
        for enforcer in self._enforcers():
            enforcer.verify()
        measured = self.evaluate(model)
        measured = dict(zip(measured, ranks.agree(list(measured.values())), strict=True))
        state = self.trainer.state
        for name, value in measured.items():
            curve = name if name == "perplexity" else f"eval_{name}"
            self.emit(state.global_step, state.epoch or 0.0, curve, value, self.tokens)
        return measured

    # -- the Trainer's events ----------------------------------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.make_pruner:
            self.pruner = self.make_pruner(state.max_steps, self.steps_per_epoch())
        resumed = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.global_step and (resumed / MARKER).exists():
            self._resume(resumed)
            print(f"going on from step {state.global_step} of {state.max_steps}", flush=True)
        self._logged = state.global_step
        self.mask_weights()
        self.emit(state.global_step, state.epoch or 0.0, TOTAL_STEPS, state.max_steps, self.tokens)

    def _resume(self, folder: Path) -> None:
        known = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        self.tokens, self._earlier = known["tokens"], known["seconds"]
        self.guard.load_state_dict(known["guard"])
        if self.pruner:
            self.pruner.load_state_dict(load_file(folder / PRUNER_STATE))
        if (folder / MASKS).exists():
            self._check_masks(load_masks(folder / MASKS).sha256, folder)

    def check_alike(self) -> None:
        """All processes must have the same masks.

        Raises:
            MaskDriftError: they differ.
        """
        if ranks.count() > 1 and not ranks.alike(masks_hash(self._masks())):
            raise MaskDriftError(
                f"masks must be the same in all {ranks.count()} processes, but at step "
                f"{self.trainer.state.global_step} they differ. Train on one GPU, and report the method that was used."
            )

    def _masks(self) -> dict[str, Tensor]:
        return {name: mask for enforcer in self._enforcers() for name, mask in enforcer.masks.items()}

    def _check_masks(self, sha256: str, folder: Path) -> None:
        """A resumed stage must go on with the masks that it was stopped with."""
        if masks_hash(self._masks()) != sha256:
            raise MaskDriftError(
                f"masks must be those of the checkpoint that training goes on from, but those of {folder} differ. "
                f"Remove that folder to go on from an earlier one."
            )

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.pruner is None:
            return
        update = self.pruner.before_step(state.global_step, self.trainer.optimizer)
        if update is None:
            return
        epoch = state.epoch or 0.0
        self.emit(state.global_step, epoch, "sparsity_target", update.target, self.tokens)
        self.emit(state.global_step, epoch, "sparsity", update.achieved, self.tokens)
        for name, value in update.by_tensor.items():
            self.emit(state.global_step, epoch, f"sparsity/{name}", value, self.tokens)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.mask_weights()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = ranks.leads() and time.monotonic() - self._saved > self.checkpoint_seconds
        stopped, due = ranks.either(self.stop(), due)
        if stopped:
            self.interrupted = control.should_save = control.should_training_stop = True
        elif due:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.check_alike()  # and all have written their part
        if not ranks.leads():
            return
        if self.pruner:
            save_file(self.pruner.state_dict(), folder / PRUNER_STATE)
        masks = self._masks()
        if masks:
            save_masks(masks, folder / MASKS, method="training", step=state.global_step)
        write_json(
            folder / MARKER,
            {"tokens": self.tokens, "seconds": self.seconds, "guard": self.guard.state_dict()},
        )
        self._saved = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:  # the summary at the end is no point of a curve
            return
        points = {name: value for name, value in logs.items() if name in ("loss", "learning_rate", "grad_norm")}
        points |= self._take_terms(state)
        for name, value in points.items():
            self.emit(state.global_step, state.epoch or 0.0, name, value, self.tokens)
        losses = {name: value for name, value in points.items() if name not in ("learning_rate", "grad_norm")}
        self.guard.check(state.global_step, losses)

    def _take_terms(self, state: TrainerState) -> dict[str, float]:
        steps = state.global_step - self._logged
        self._logged = state.global_step
        sums = ranks.total([float(value) for value in self._terms.values()])
        terms = {name: value / max(steps, 1) for name, value in zip(self._terms, sums, strict=True)}
        self._terms.clear()
        return terms


logging.getLogger("transformers.trainer").setLevel(logging.WARNING)
