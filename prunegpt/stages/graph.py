"""The chain of a trial, run from the last stage that is already published."""

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt import usage
from prunegpt.errors import Interrupted
from prunegpt.lm import ranks
from prunegpt.lm.device import overlooked, pick_device, pick_dtype
from prunegpt.planning.fingerprint import extra_versions, versions
from prunegpt.planning.inputs import Inputs
from prunegpt.records import Evaluation, StageRecord, chain_metrics, main_scores, published_record
from prunegpt.root import Root
from prunegpt.spec.plan import PlannedEvaluation, StagePlan, TrialPlan
from prunegpt.spec.schema import ModelSpec
from prunegpt.stages import cache
from prunegpt.stages.base import ModelState, Pruned, Result, StageContext, StageFunction
from prunegpt.stages.generate import ensure, generated_in, is_there
from prunegpt.stages.measure import Ruler, allocation_of, check_ledger, count_zeros
from prunegpt.stages.process import unmarked
from prunegpt.stages.prune import prune
from prunegpt.stages.shrink import shrink
from prunegpt.stages.source import init, load, pretrain
from prunegpt.stages.train import distill, finetune

STAGES: Mapping[str, StageFunction] = {
    "load": load,
    "pretrain": pretrain,
    "init": init,
    "finetune": finetune,
    "prune": prune,
    "shrink": shrink,
    "distill": distill,
}
_CURVES = ("perplexity", "task:", "tasks:")  # begin the names of what is measured after a stage, beside its sparsity
_TRAINED = ("pretrain", "finetune", "distill")  # all processes work on these; the first one does the others alone

EmitStage = Callable[[int, int, float, str, float, int], None]  # stage, step, epoch, name, value, tokens


@dataclass(frozen=True)
class Chain:
    """Runs one trial's stages in order.

    Args:
        trial: the plan.
        root: where stages are looked up and published.
        emit: takes every point of every curve.
        say: takes a line of the log.
        stop: asked between steps; True ends the trial with a checkpoint.
    """

    trial: TrialPlan
    root: Root
    emit: EmitStage
    say: Callable[[str], None] = print
    stop: Callable[[], bool] = lambda: False

    @cached_property
    def inputs(self) -> Inputs:
        """What the trial may read besides the root."""
        return Inputs.of(self.trial, self.root)

    def run(self, done: Callable[[StageRecord], None]) -> None:
        """Runs what is not published; `done` is called with each stage and its evaluation, in order.

        Of several processes (see `lm.ranks`) the first looks up, measures and publishes; all of them train.
        """
        with ranks.joined():
            self._run(done)

    def _run(self, done: Callable[[StageRecord], None]) -> None:
        device = pick_device(self.trial.device)
        ranks.check_device(device)
        if self.trial.device == "auto" and (words := overlooked(device)):
            self.say(words)
        dtype = pick_dtype(self.trial.precision, device)
        first = PlannedEvaluation(evaluate=self.trial.evaluate, key=self.trial.evaluation_key)
        rulers = [
            Ruler.of(one, self.trial, device, self.inputs, lambda key: self._reference(key, device), self.say)
            for one in (first, *self.trial.also)
        ]
        if ranks.leads():
            self._want_models()
        state: ModelState | None = None
        for index, plan in enumerate(self.trial.stages):
            if ranks.decide(self._is_complete(plan)):
                state = None  # a later stage that needs the model loads it
                done(self._finished(index, plan, cached=True))
                continue
            cached = ranks.decide(self.root.is_published(plan.key))
            if not cached:
                with cache.computing(self.root, plan.key) if ranks.leads() else nullcontext():
                    cached = ranks.decide(self.root.is_published(plan.key))  # somebody else may have finished
                    if not cached:
                        state = self._compute(index, plan, state, device, dtype, rulers)
            if cached:
                state = self._load(plan.key, plan.model, device, products=self._products(index, device, rulers))
            if state is not None and ranks.leads():
                self._measure(index, plan, state, rulers)
            if not self._hands_on(index, device):
                _freed(state)
                state = None
            ranks.wait()
            done(self._finished(index, plan, cached=cached))

    def _want_models(self) -> None:
        """Models that were removed, and are still to be measured or built on, count as not computed from here on."""
        following = None
        unmeasured = [one for one in self.trial.evaluations if not self.root.is_measured(self.trial.key, one.key)]
        wanted = {one.reference for one in unmeasured}
        for plan in reversed(self.trial.stages):
            built_on = following is not None and not self.root.is_published(following.key)
            if built_on or plan.key in wanted or self._unmeasured(plan):
                self.root.want_model(plan.key)
            if not self.root.is_published(plan.key) and not all(is_there(self.root, one) for one in generated_in(plan)):
                self.root.want_model(self.trial.stages[0].key)  # it writes the text
            following = plan

    def _is_complete(self, plan: StagePlan) -> bool:
        """Published and measured."""
        return self.root.is_published(plan.key) and not self._unmeasured(plan)

    def _unmeasured(self, plan: StagePlan) -> list[str]:
        """The keys of the evaluations of a stage that are not there."""
        keys = [one.key for one in self.trial.evaluations_after(plan.key)]
        return [key for key in keys if not self.root.is_measured(plan.key, key)]

    def _compute(
        self,
        index: int,
        plan: StagePlan,
        state: ModelState | None,
        device: torch.device,
        dtype: torch.dtype,
        rulers: Sequence[Ruler],
    ) -> ModelState | None:
        """Computes a stage and publishes it; gives its model where it is measured or worked on next."""
        if plan.kind not in _TRAINED and not ranks.leads():
            ranks.wait()
            return self._load(plan.key, plan.model, device) if self._hands_on(index, device) else None
        wanted = self._hands_on(index, device) or bool(ranks.leads() and self._unmeasured(plan))
        products = self._products(index, device, rulers)
        usage.restart_peak(device)
        if state is None:
            state = self._parent(plan, device)

        def emit(step: int, epoch: float, name: str, value: float, tokens: int) -> None:
            self.emit(index, step, epoch, name, value, tokens)

        def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, float]:
            measured: dict[str, float] = {}
            for ruler in rulers:
                asked = ruler.plan.evaluate
                if not measured or (asked.kind == "text" and asked.after_each):
                    found, _ = ruler.measure(model, tokenizer)
                    end = f":{ruler.plan.name}" if measured else ""
                    measured |= {f"loss{end}": _number(found.loss), f"perplexity{end}": _number(found.perplexity)}
            return measured

        setting = StageContext(
            root=self.root,
            inputs=self.inputs,
            device=device,
            dtype=dtype,
            emit=emit,
            measure=measure,
            stop=self.stop,
            teacher=lambda key: self._load(key, self.trial.teacher_models[key], device, narrow_dtype(dtype)),
            products=products,
            wanted=wanted,
            micro_batch_divisor=self.trial.micro_batch_divisor,
        )
        self._generate(plan, device, dtype)
        self.say(f"stage {index} {plan.kind} {plan.key}: started on {device}")
        started = time.monotonic()
        with unmarked():
            result = STAGES[plan.kind](plan, state, setting)
        check_ledger(state)
        seconds = max(result.seconds, time.monotonic() - started)
        if ranks.leads():
            cache.publish(self.root, plan, state, self._record(index, plan, state, result, seconds, setting))
        ranks.wait()
        self.say(f"stage {index} {plan.kind} {plan.key}: published after {seconds:.1f} s")
        if plan.kind == "load" and wanted:
            return state
        # What was published is what is measured and passed on: no attention kernel, wrapper or hook that a stage has
        # set in this process outlives it, and a chain that is run in pieces gives the same bits.
        _freed(state)
        return self._load(plan.key, plan.model, device, products=products) if wanted else None

    def _hands_on(self, index: int, device: torch.device) -> bool:
        """Whether the next stage works on the model that this one leaves on the device."""
        following = self.trial.stages[index + 1 : index + 2]
        return any(not (_loads(plan, device) or _shards(plan)) for plan in following)

    def _products(self, index: int, device: torch.device, rulers: Sequence[Ruler]) -> torch.dtype | None:
        """The dtype that products of a stage's model may be held in, where it is measured in that and nothing else."""
        missing = self._unmeasured(self.trial.stages[index])
        asked = {(one.plan.evaluate.kind, one.dtype) for one in rulers if one.plan.key in missing}
        if self._hands_on(index, device) or {kind for kind, _ in asked} != {"text"} or len(asked) > 1:
            return None
        return narrow_dtype(next(iter(asked))[1])

    def _generate(self, plan: StagePlan, device: torch.device, dtype: torch.dtype) -> None:
        """Writes the text that a stage reads of the model its chain starts from, where it is not there yet."""

        def load() -> ModelState:
            return self._load(self.trial.stages[0].key, self.trial.model, device)

        for one in generated_in(plan):
            done = not ranks.leads() or ensure(
                one, self.root, self.inputs, load, dtype=dtype, say=self.say, stop=self.stop
            )
            if not ranks.decide(done):
                raise Interrupted("stopped while text was generated; what is written is kept")

    def _reference(self, key: str, device: torch.device) -> PreTrainedModel:
        """The model that speed is measured beside."""
        return self._load(key, self.trial.teacher_models.get(key, self.trial.model), device).model

    def _load(
        self,
        key: str,
        model: ModelSpec,
        device: torch.device,
        products: torch.dtype | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ModelState:
        return cache.load(self.root, key, model, self.inputs, device=device, dtype=dtype, products=products)

    def _parent(self, plan: StagePlan, device: torch.device) -> ModelState:
        if plan.parent is None:
            return ModelState(None, None, Pruned())  # a source stage fills it
        if _loads(plan, device):
            return self._load(plan.parent, plan.model, torch.device("cpu"), dtype=getattr(torch, plan.storage))
        return self._load(plan.parent, plan.model, torch.device("cpu") if _shards(plan) else device)

    def _record(
        self, index: int, plan: StagePlan, state: ModelState, result: Result, seconds: float, setting: StageContext
    ) -> StageRecord:
        return StageRecord(
            key=plan.key,
            kind=plan.kind,
            index=index,
            cached=False,
            seconds=seconds,
            peak_memory=usage.peak(setting.device),
            train_tokens=result.train_tokens,
            steps=result.steps,
            sparsity=count_zeros(state),
            allocation=allocation_of(plan),
            notes=result.notes,
            layers=result.layers,
            versions={**versions(), **extra_versions()},
            device=device_name(setting.device),
            precision=str(setting.dtype).removeprefix("torch."),
            devices=ranks.count() if plan.kind in _TRAINED else 1,
            threads=torch.get_num_threads(),
        )

    def _measure(self, index: int, plan: StagePlan, state: ModelState, rulers: Sequence[Ruler]) -> None:
        missing = self._unmeasured(plan)
        if missing:
            check_ledger(state)
        for ruler in rulers:
            if ruler.plan.key in missing:
                found, arrays = ruler.measure(state.model, state.tokenizer, stage=plan.key)
                cache.publish_evaluation(self.root, plan.key, found, arrays)
                named = f"{ruler.plan.name}: " if ruler.plan.name else ""
                self.say(f"stage {index} {plan.kind} {plan.key}: {named}{in_words(found)}")

    def _finished(self, index: int, plan: StagePlan, *, cached: bool) -> StageRecord:
        record = published_record(self.root, self.trial, index, cached=cached)
        for name, value in chain_metrics([record]).items():
            if value is not None and (name == "sparsity" or name.startswith(_CURVES)):
                self.emit(index, record.steps, 0.0, name, value, record.train_tokens)
        return record


def _loads(plan: StagePlan, device: torch.device) -> bool:
    """Whether a stage takes its model from the disk to the host, in the dtype that it is stored in.

    Pruning does: the device may not hold the model.
    """
    return plan.kind == "prune" and (plan.storage != "float32" or device.type != "cpu")


def _shards(plan: StagePlan) -> bool:
    """Whether a stage takes its model to the host, of which each device gets a part when training starts."""
    return plan.training is not None and bool(plan.training.train.get("fsdp")) and ranks.count() > 1


def _freed(state: ModelState | None) -> None:
    """Gives the memory of a model back that nobody works on any more."""
    if state is not None:
        gone = weakref.ref(state.model)
        state.model, state.pruned, state.layers = None, Pruned(), None
        cache.release(gone)


def in_words(found: Evaluation) -> str:
    """A measurement as a line of a log."""
    if found.speed:
        return f"{found.speed.words} ({found.protocol})"
    if not found.scores:
        return f"perplexity {found.perplexity} ({found.protocol})"
    scores = main_scores(found.scores).values()
    return f"{', '.join(f'{one.task} {one.metric} {one.value}' for one in scores)} ({found.protocol})"


def narrow_dtype(dtype: torch.dtype) -> torch.dtype | None:
    """A dtype that products are computed in, where it is not that of weights."""
    return None if dtype == torch.float32 else dtype


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def device_name(device: torch.device) -> str:
    """cpu, or the name of the card."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
