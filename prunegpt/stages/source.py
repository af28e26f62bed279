"""Where a chain starts: a model as it is, or the built-in one trained from random weights."""

from prunegpt.builtin.model import PRETRAIN, build
from prunegpt.spec.plan import StagePlan
from prunegpt.stages import cache, text
from prunegpt.stages.base import Pruned, Result, Setting, State
from prunegpt.training import Blocks, train


def load(plan: StagePlan, state: State, setting: Setting) -> Result:
    """The model the plan names, from the hub, a folder or a file."""
    found = cache.source(setting.root, plan, device=setting.device)
    state.model, state.tokenizer, state.pruned = found.model, found.tokenizer, Pruned()
    return Result()


def pretrain(plan: StagePlan, state: State, setting: Setting) -> Result:
    """The built-in model, trained on its own text: the same bits on the same machine, whoever asks."""
    assert plan.data is not None
    state.tokenizer = cache.tokenizer(setting.root, plan)
    state.model = build(seed=PRETRAIN.seed)
    state.model.to(setting.device)
    data = plan.data.model_copy(update={"train_split": PRETRAIN.split, "block_size": PRETRAIN.block_size})
    blocks = Blocks(text.training_blocks(data, state.tokenizer, setting.root))
    outcome = train(
        state.model,
        blocks,
        arguments=PRETRAIN.arguments,
        work=setting.root.work(plan.key),
        seed=PRETRAIN.seed,
        device=setting.device,
        dtype=setting.dtype,
        emit=setting.emit,
        stop=setting.stop,
    )
    return Result(train_tokens=outcome.tokens, steps=outcome.steps, seconds=outcome.seconds)
