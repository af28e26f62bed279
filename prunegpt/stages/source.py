"""Where a chain starts: a model as it is, the built-in one trained from random weights, or random weights."""

import torch

from prunegpt.builtin import BUILTIN_MODELS, is_builtin
from prunegpt.builtin.model import build
from prunegpt.lm import ranks
from prunegpt.lm.blocks import Blocks
from prunegpt.lm.multimodal import processor_files
from prunegpt.lm.skeleton import build_random
from prunegpt.planning.budget import count_steps, divided_note
from prunegpt.planning.sources import model_files, origin
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.masks import masks_hash
from prunegpt.spec.plan import StagePlan
from prunegpt.stages import cache, text
from prunegpt.stages.base import ModelState, Result, StageContext
from prunegpt.training import TrainingJob, train


def load(plan: StagePlan, state: ModelState, setting: StageContext) -> Result:
    """The model the plan names, from the hub, a folder or a file."""
    stored = getattr(torch, origin(plan.model)[0])
    products = setting.products if setting.products == stored else None  # whose zeros are those of the files
    found = cache.source(
        setting.root,
        plan.model,
        setting.inputs,
        device=setting.device if setting.wanted else torch.device("cpu"),
        dtype=torch.float32 if setting.wanted else getattr(torch, plan.storage),
        products=products,
    )
    state.model, state.tokenizer, state.pruned = found.model, found.tokenizer, found.pruned
    state.processor = found.processor
    return Result(notes=found.notes)


def init(plan: StagePlan, state: ModelState, setting: StageContext) -> Result:
    """A model in the shape of the one the plan names, with weights drawn by the stage's seed: equal bits anywhere."""
    model = plan.model
    state.tokenizer = cache.tokenizer(setting.root, model, setting.inputs)
    with setting.inputs.reading(model_files(model)):
        if is_builtin(model.source):
            state.model = build(plan.seed, model.source)
        else:
            state.model = build_random(
                model.source,
                plan.seed,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                code_revision=model.code_revision,
            )
            state.processor = processor_files(model.source, model.revision)
    state.model.to(setting.device)
    return Result(
        notes=(f"random weights, drawn by seed {plan.seed}: of {model.source} only its config and tokeniser are used",)
    )


def pretrain(plan: StagePlan, state: ModelState, setting: StageContext) -> Result:
    """The built-in model, trained on its own text: the same bits on the same machine."""
    assert plan.data is not None
    state.tokenizer = cache.tokenizer(setting.root, plan.model, setting.inputs)
    recipe = BUILTIN_MODELS[plan.model.source].pretraining
    state.model = build(recipe.seed, plan.model.source)
    state.model.to(setting.device)
    data = plan.data.model_copy(update={"train_split": recipe.split, "block_size": recipe.block_size})
    with ranks.first_alone():
        blocks = Blocks(*text.training_blocks(data, state.tokenizer, setting.root, setting.inputs))
    steps, per_epoch = count_steps(recipe.arguments, len(blocks))
    job = TrainingJob(
        key=plan.key,
        steps=steps,
        per_epoch=per_epoch,
        seed=recipe.seed,
        arguments=recipe.arguments,
        held=masks_hash({}),
    )
    outcome = train(
        state.model,
        blocks,
        job,
        work=setting.root.work(plan.key),
        device=setting.device,
        dtype=setting.dtype,
        emit=setting.emit,
        enforcer=Enforcer({}),
        stop=setting.stop,
        micro_batch_divisor=setting.micro_batch_divisor,
    )
    return Result(
        train_tokens=outcome.tokens,
        steps=outcome.steps,
        seconds=outcome.seconds,
        notes=divided_note(recipe.arguments, setting.micro_batch_divisor),
    )
