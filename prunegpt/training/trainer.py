"""transformers.Trainer, handed a frozen job: masks, distillation and points at the right moment of a step.

Nothing here computes a perplexity or a mask: the trainer asks the parts that do. Masks change before a step, gradients
are masked before clipping, weights after the optimizer.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from prunegpt.distill.guard import DivergenceGuard
from prunegpt.distill.objective import ChunkedOwnLoss, DistillationObjective
from prunegpt.distill.targets import IGNORE
from prunegpt.errors import MaskDriftError, PruneGPTError
from prunegpt.lm import ranks
from prunegpt.lm.blocks import SharedSampler
from prunegpt.planning.budget import micro_batch
from prunegpt.planning.sources import MASKS
from prunegpt.points import Emit
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.masks import load_masks, masks_hash, save_masks
from prunegpt.recipes.learning_rate import LearningRateCurve
from prunegpt.records import TOTAL_STEPS
from prunegpt.root import read_json, write_json
from prunegpt.spec.names import by_parameter
from prunegpt.training import sharding
from prunegpt.training.adapter import Adapter
from prunegpt.training.job import TrainingJob

MARKER = "prunegpt.json"  # written last into a checkpoint: what lacks it was cut by a crash
PRUNER_STATE = "pruner.safetensors"

_GUARD_STEPS = 10  # between checks of the losses, whatever is logged


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written whole."""
    whole = [folder for folder in work.glob("checkpoint-*") if (folder / MARKER).exists()]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])


class _Means:
    """Loss terms, each averaged over the optimizer steps that had it since they were last taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, set[int]] = {}

    def add(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Adds the terms of a micro-batch: this process's share of those of an optimizer step."""
        for name, value in terms.items():
            before = self._sums.get(name)
            self._sums[name] = value.detach() if before is None else before + value.detach()
            self._steps.setdefault(name, set()).add(step)

    def take(self) -> dict[str, float]:
        """The means over all processes; empty where no step was taken since."""
        sums = ranks.total([float(value) for value in self._sums.values()])
        means = {name: value / len(self._steps[name]) for name, value in zip(self._sums, sums, strict=True)}
        self._sums.clear()
        self._steps.clear()
        return means


class JobTrainer(Trainer, TrainerCallback):
    """Trains as a job says. It is its own callback, so that loss, masks and checkpoints are seen to in one place.

    Arguments are those of :func:`prunegpt.training.run.train`, and those of transformers.Trainer.
    """

    control: TrainerControl

    def __init__(
        self,
        job: TrainingJob,
        *,
        emit: Emit,
        enforcer: Enforcer,
        pruner: GradualPruner | None,
        objective: DistillationObjective | None,
        measure: Callable[[nn.Module], Mapping[str, float]] | None,
        stop: Callable[[], bool],
        checkpoint_seconds: float,
        adapter: Adapter | None = None,
        original: PreTrainedModel | None = None,
        **arguments: Any,
    ) -> None:
        self._own = vars(arguments["model"]).keys() & {"forward"}
        super().__init__(**arguments)
        self.add_callback(self)
        if objective:
            self.loss_is_scaled_for_ga = None
            self.model_accepts_loss_kwargs = True  # so that all micro-batches share one denominator
        self.job = job
        self.emit = emit
        self.enforcer = enforcer
        self.pruner = pruner
        self.objective = objective
        self.measure = measure
        self.stop = stop
        self.checkpoint_seconds = checkpoint_seconds
        self.adapter = adapter
        self.original = original
        self._own_loss = ChunkedOwnLoss()
        self.guard = DivergenceGuard(self.model.get_input_embeddings().weight.shape[0])
        self.tokens = 0
        self.interrupted = False
        self._notes: dict[str, None] = {}  # of mask updates and earlier attempts, an ordered set
        self._earlier = 0.0  # seconds of earlier attempts
        self._started = self._saved = time.monotonic()
        self._logged, self._guarded = _Means(), _Means()

    def close(self) -> None:
        """Lets go of gradients, moments and the model: what a trainer refers to refers to it, and would stay.

        The model gets its own `forward` back, which accelerate has put one around that refers to the model.
        """
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # in accelerate's wrapper
        if optimizer is not None:
            optimizer.state.clear()
            optimizer.param_groups.clear()
        for parameter in self.model.parameters():
            parameter.grad = None
        for name in {"forward", "_original_forward"} & vars(self.model).keys() - self._own:
            delattr(self.model, name)
        self.__dict__.clear()

    @property
    def seconds(self) -> float:
        return self._earlier + time.monotonic() - self._started

    @property
    def notes(self) -> tuple[str, ...]:
        """What the record of the stage should say, each once: of mask updates, then of the distillation."""
        distillation = tuple(dict.fromkeys(self.objective.notes)) if self.objective else ()
        return (*(note for note in self._notes if note not in distillation), *distillation)

    # -- what transformers.Trainer leaves to its subclasses ------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The order of one process, whose batches several processes share."""
        sampler = super()._get_train_sampler(train_dataset)
        if ranks.count() == 1 or sampler is None:
            return sampler
        rows = len(self.train_dataset)
        if isinstance(sampler, torch.utils.data.RandomSampler):  # as accelerate does where there is one process
            sampler = SeedableRandomSampler(self.train_dataset, data_seed=self.args.data_seed)
        batch = self.args.per_device_train_batch_size * ranks.count()
        drop = micro_batch(self.job.arguments, 1)[0] if self.args.dataloader_drop_last else 1
        return SharedSampler(sampler, batch, rows // drop * drop)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The scheduler of the arguments, or one that follows the curve of the job."""
        if not self.job.learning_rate:
            return super().create_scheduler(num_training_steps, optimizer)
        curve, base = LearningRateCurve(segments=self.job.learning_rate), self.args.learning_rate

        def factor(step: int) -> float:
            rate = curve.learning_rate_at(step, steps_per_epoch=self.job.per_epoch)
            return 1.0 if rate is None else rate / base

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of an optimizer step and their labels; of some steps the student writes the text."""
        batches, labels = super().get_batch_samples(epoch_iterator, num_batches, device)
        writer, step = self.objective.on_policy if self.objective else None, self.state.global_step
        if writer and writer.is_due(step):
            with self.accelerator.autocast():
                batches = [writer.write(self.model, batch, step) for batch in batches]
            labels = self._get_num_items_in_batch(batches, device)
        return batches, labels

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        known: dict[str, Any] = {name: inputs.pop(name) for name in ("block", "seen") if name in inputs}
        rows = inputs.pop("rows", None)
        responses = {"responses": inputs.pop("responses")} if "responses" in inputs else {}
        own, length = inputs["input_ids"].shape
        if responses:
            self.tokens += int(ranks.total([float((inputs["labels"] != IGNORE).sum())])[0])
        else:
            self.tokens += (own if rows is None else int(rows)) * length
        if self.objective is None:
            chunked = self._own_loss(model, inputs, num_items_in_batch)
            if chunked is None:
                loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
                self._note({"ce": (loss[0] if return_outputs else loss) / ranks.count()})
                return loss
            loss, terms = chunked, {"ce": chunked.detach()}
        else:
            loss, terms = self.objective(model, {**inputs, **responses, **known}, num_items_in_batch)
        self._note(terms)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, tokens were summed
        return (loss, {}) if return_outputs else loss

    def _note(self, terms: Mapping[str, Tensor]) -> None:
        for means in (self._logged, self._guarded):
            means.add(terms, self.state.global_step)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            if self.pruner:
                scaler = self.accelerator.scaler
                self.pruner.accumulate(scale=float(scaler.get_scale()) if scaler else 1.0)
            self.enforcer.mask_gradients()
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        if self.measure is None:
            raise PruneGPTError(
                "eval_strategy asks for evaluation while training, but this stage has nothing to measure on."
            )
        self.enforcer.verify()
        found = self.measure(self.model)
        found = dict(zip(found, ranks.agree(list(found.values())), strict=True))
        for name, value in found.items():
            self._emit(name if name.startswith("perplexity") else f"eval_{name}", value)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            sharding.enable(self.accelerator, self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if self.is_fsdp_enabled and training:  # with autocast alone: accelerate shards it afterwards
            wrapped: nn.Module = self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        else:
            wrapped = super()._wrap_model(model, training, dataloader)
        return wrapped

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = sharding.joined_state(self.optimizer)
        if self.args.should_save:  # as without FSDP: any number of processes resumes from it
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        sharding.load_state(self.optimizer, torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True))
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The weights of a checkpoint: all, or with an adapter those that are trained."""
        if self.adapter is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.adapter.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            sharding.load_weights(self.model, Path(resume_from_checkpoint))
        elif self.adapter is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.adapter.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.adapter is None:
            super()._load_best_model()
        else:
            self.adapter.load(Path(self.state.best_model_checkpoint or ""))

    def _emit(self, name: str, value: float) -> None:
        self.emit(self.state.global_step, self.state.epoch or 0.0, name, value, self.tokens)

    # -- the moments of a training, as its own callback ----------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.max_steps != self.job.steps:
            raise PruneGPTError(
                f"a training must take the optimizer steps that it was planned with, {self.job.steps}; transformers "
                f"counts {state.max_steps}. Report the training arguments that were used."
            )
        if self.original is not None:
            sharding.split(self.model, self.enforcer, self.pruner)
            sharding.empty(self.original)
        resumed = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.global_step and (resumed / MARKER).exists():
            self._resume(resumed)
            print(f"resuming from step {state.global_step} of {state.max_steps}", flush=True)
        state.compute_steps(args, state.max_steps)  # a checkpoint brings the intervals that it was written under
        self.enforcer.mask_weights()
        self._emit(TOTAL_STEPS, state.max_steps)

    def _resume(self, folder: Path) -> None:
        known = read_json(folder / MARKER)
        self.tokens, self._earlier = known["tokens"], known["seconds"]
        self.guard.load_state_dict(known["guard"])
        self._notes = dict.fromkeys(known["notes"])
        if self.pruner:
            self.pruner.load_state_dict(load_file(folder / PRUNER_STATE))
        if (folder / MASKS).exists():
            self.enforcer.set_masks(load_masks(folder / MASKS).masks)
        if masks_hash(self.enforcer.masks) != known["masks"]:
            raise MaskDriftError(
                f"masks must be those of the checkpoint that training resumes from; those of {folder} differ. Remove "
                "that folder to resume from an earlier one."
            )

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.pruner is None:
            return
        update = self.pruner.before_step(state.global_step, self.optimizer)
        if update is None:
            return
        self._notes |= dict.fromkeys(update.notes)
        self._emit("sparsity_target", update.target)
        self._emit("sparsity", update.achieved)
        for name, value in by_parameter(update.by_tensor).items():
            self._emit(f"sparsity/{name}", value)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        scaler = self.accelerator.scaler
        unscaled = scaler is None or args.max_grad_norm > 0  # clipping does it
        self.enforcer.before_optimizer(scale=1.0 if unscaled else float(scaler.get_scale()))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.enforcer.mask_weights()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = ranks.leads() and time.monotonic() - self._saved > self.checkpoint_seconds
        stopped, due = ranks.either(self.stop(), due)
        if stopped:
            self.interrupted = control.should_save = control.should_training_stop = True
        elif due:
            control.should_save = True
        if control.should_save or state.global_step % _GUARD_STEPS == 0 or state.global_step == state.max_steps:
            self.guard.check(state.global_step, self._guarded.take())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.check_alike()  # and all have written their part
        together = ranks.leads() or self.enforcer.sharded
        masks = self.enforcer.masks if together else {}
        pruned = self.pruner.state_dict() if self.pruner and together else {}
        if not ranks.leads():
            return
        if pruned:
            save_file(pruned, folder / PRUNER_STATE)
        if masks:
            save_masks(masks, folder / MASKS, method="training", step=state.global_step)
        write_json(
            folder / MARKER,
            {
                "tokens": self.tokens,
                "seconds": self.seconds,
                "guard": self.guard.state_dict(),
                "notes": list(self.notes),
                "masks": masks_hash(masks),
            },
        )
        self._saved = time.monotonic()
        if self.args.save_total_limit:  # else all are kept
            best = self.state.best_model_checkpoint
            for earlier in folder.parent.glob("checkpoint-*"):
                if earlier != folder and (best is None or earlier != Path(best)):
                    shutil.rmtree(earlier, ignore_errors=True)  # a model three times

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
        for name, value in {**points, **self._logged.take()}.items():
            self._emit(name, value)

    def restore(self, checkpoint: Path) -> None:
        """The state that training ended with, from a checkpoint of its last step."""
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self._load_from_checkpoint(str(checkpoint))
        self._resume(checkpoint)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()

    def check_alike(self) -> None:
        """Looks that all processes have the same masks.

        Raises:
            MaskDriftError: they differ.
        """
        if ranks.count() > 1 and not ranks.alike(masks_hash(self.enforcer.masks)):
            raise MaskDriftError(
                f"masks must be the same in all {ranks.count()} processes; at step {self.state.global_step} they "
                "differ. Train on one GPU, and report the method that was used."
            )


logging.getLogger("transformers.trainer").setLevel(logging.WARNING)
