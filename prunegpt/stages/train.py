"""Training stages: fine-tuning and distillation, with or without pruning on the way."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.lm import ranks
from prunegpt.lm.blocks import Blocks
from prunegpt.lm.checks import check_own_loss
from prunegpt.lm.views import block_matrices, matrices, select
from prunegpt.planning.budget import count_steps, divided_note
from prunegpt.planning.inputs import Inputs
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.evidence import Evidence, evidence
from prunegpt.pruning.gradients import GATHERED
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.job import GradualJob, enforcer_of, load_method, resolve_gradual
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import masks_from_zeros, masks_hash
from prunegpt.pruning.statistics import evaluating
from prunegpt.root import Root
from prunegpt.spec.adapter import adapter_problems
from prunegpt.spec.methods import mode_options
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.pruning import prune_problems, refuse, update_problems
from prunegpt.spec.schema import FinetuneSpec, GradualSpec
from prunegpt.spec.sharding import sharding_problems
from prunegpt.spec.training_arguments import training_problems
from prunegpt.stages import text
from prunegpt.stages.base import ModelState, Pruned, Result, StageContext
from prunegpt.stages.budget import coverage_notes, method_options, scope_of, sparsities_of
from prunegpt.stages.prune import merged
from prunegpt.stages.teach import objective_for
from prunegpt.training import TrainingJob, train
from prunegpt.training.adapter import Adapter


def finetune(plan: StagePlan, state: ModelState, setting: StageContext) -> Result:
    """Trains on the text with the model's own cross-entropy."""
    assert plan.finetune is not None
    check_own_loss(plan.model.source, state.model)
    return _train(plan, plan.finetune, state, setting)


def distill(plan: StagePlan, state: ModelState, setting: StageContext) -> Result:
    """Trains on the text and on what the teacher makes of it."""
    assert plan.distill is not None
    return _train(plan, plan.distill, state, setting)


def _train(plan: StagePlan, config: FinetuneSpec, state: ModelState, setting: StageContext) -> Result:
    assert plan.data is not None
    with ranks.first_alone():
        packed = text.training_blocks(plan.data, state.tokenizer, setting.root, setting.inputs, config.loss_on)
        blocks = Blocks(*packed, limit=plan.data.max_train_blocks)
    before = held_at_start(config, state)
    windows = calibration_of(config.prune, state, setting.inputs, setting.root)
    work = setting.root.work(plan.key)
    with ranks.first_alone():
        job = TrainingJob.read(work, key=plan.key, held=before.masks)
        if job is None:
            precision = str(setting.dtype).removeprefix("torch.")
            job = resolve(plan, config, state, len(blocks), before.masks, windows, precision)
            job.write(work)
        objective = objective_for(plan, state, setting, blocks) if plan.distill else None
    moving = tuple(job.prune.sparsities) if job.prune else ()
    names = tuple(dict.fromkeys([*before.masks, *moving]))
    enforcer = enforcer_of(job.prune, select(state.model, targets=names) if names else {}, before.masks)
    adapter = Adapter(state.model, config.adapter, before.masks, seed=plan.seed) if config.adapter else None
    samples = work / ("samples" if ranks.leads() else f"samples-{ranks.rank()}")  # each process computes its own
    outcome = train(
        state.model,
        blocks,
        job,
        neutral=plan.neutral,
        work=work,
        device=setting.device,
        dtype=setting.dtype,
        emit=setting.emit,
        enforcer=enforcer,
        pruner=pruner_of(job.prune, enforcer, state, windows, samples) if job.prune else None,
        objective=objective,
        adapter=adapter,
        evaluate=lambda model: setting.measure(state.model, state.tokenizer),
        stop=setting.stop,
        keep_checkpoints=config.keep_checkpoints,
        micro_batch_divisor=setting.micro_batch_divisor,
    )
    state.pruned = before
    trained = (adapter.note,) if adapter else ()
    notes = (*outcome.notes, *trained, *blocks.notes, *divided_note(config.train, setting.micro_batch_divisor))
    if config.prune:
        pruned = {name: enforcer.views[name] for name in moving}
        notes = (*notes, *text.mix_notes(config.prune.calibration), *coverage_notes(config.prune, state, pruned))
        state.pruned = merged(before, {name: enforcer.mask(name) for name in moving}, config.prune)
    return Result(
        train_tokens=outcome.tokens,
        steps=outcome.steps,
        seconds=outcome.seconds,
        notes=notes,
    )


def held_at_start(config: FinetuneSpec, state: ModelState) -> Pruned:
    """The masks that stay closed in a training: those of earlier stages, and with `keep_zeros` all zeros there are."""
    before = state.pruned if config.keep_masks else Pruned()
    if not config.keep_zeros:
        return before
    zeros = masks_from_zeros(block_matrices(state.model))
    if masks_hash(zeros) == masks_hash(before.masks):
        return before
    return Pruned({**before.masks, **zeros}, before.method or "zeros")


def resolve(
    plan: StagePlan,
    config: FinetuneSpec,
    state: ModelState,
    blocks: int,
    held: Mapping[str, Mask],
    windows: Tensor | None = None,
    precision: str = "float32",
) -> TrainingJob:
    """What a training stage will do, from the model that it is given.

    Args:
        blocks: how many there are to train on.
        held: the masks of earlier stages that stay closed.
        windows: calibration tokens, [windows, length], for an allocation that uses activations.
        precision: that the model is trained in.

    Raises:
        PruneGPTError: the stage cannot do what its config says.
    """
    refuse(training_problems(config.train, prunes=config.prune is not None))
    refuse(sharding_problems(config, config.train, precision))
    if config.adapter:
        refuse(adapter_problems(config.adapter, prunes=config.prune is not None))
    if config.prune:
        refuse(prune_problems(config.prune, matrices(state.model)))
    steps, per_epoch = count_steps(config.train, blocks)
    return TrainingJob(
        key=plan.key,
        steps=steps,
        per_epoch=per_epoch,
        seed=plan.seed,
        arguments={name: value for name, value in config.train.items() if name not in plan.neutral},
        learning_rate=config.learning_rate,
        prune=_gradual(config.prune, plan, state, steps, per_epoch, windows) if config.prune else None,
        held=masks_hash(held),
        teacher=plan.teacher,
    )


def _gradual(
    spec: GradualSpec, plan: StagePlan, state: ModelState, steps: int, per_epoch: int, windows: Tensor | None
) -> GradualJob:
    views = select(state.model, targets=spec.targets, layers=spec.layers, exclude=spec.exclude)
    clock = spec.clock_in(steps, per_epoch)
    refuse(update_problems(spec, clock))
    return resolve_gradual(
        views,
        method=spec.method,
        clock=clock,
        final=spec.sparsity,
        sparsities=sparsities_of(spec, state, views, windows),
        schedule=spec.schedule,
        initial=spec.initial,
        pattern=spec.pattern,
        scope=scope_of(spec),
        regrow=spec.regrow,
        mode=spec.mode,
        mode_options=mode_options(spec),
        seed=plan.seed,
        options=method_options(spec),
    )


def calibration_of(spec: GradualSpec | None, state: ModelState, inputs: Inputs, root: Root) -> Tensor | None:
    if spec is None or not spec.calibration.parts:
        return None
    return text.calibration(spec.calibration, state.tokenizer, inputs, root)


def pruner_of(
    job: GradualJob, enforcer: Enforcer, state: ModelState, windows: Tensor | None, scratch: Path | None = None
) -> GradualPruner:
    """What moves the masks of a job; `scratch` as of :func:`~prunegpt.pruning.evidence.evidence`."""
    needs = load_method(job.method).needs - GATHERED

    def statistics(seed: int) -> Iterator[dict[str, Evidence]]:
        if windows is None:
            raise PruningError(f"{job.method} needs calibration data; there is none. Set data.")
        views = {name: enforcer.views[name] for name in job.sparsities}
        with evaluating(state.model):
            yield from evidence(state.model, views, windows, needs=needs, propagate=False, seed=seed, scratch=scratch)

    return GradualPruner(job, enforcer, statistics=statistics if needs - {"generator"} else None)
