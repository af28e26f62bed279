"""What a distillation stage trains against: a teacher that runs, or its cached logits."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prunegpt.distill.cache import FORMAT, TopKCache, build_cache
from prunegpt.distill.losses.base import DistillationLoss
from prunegpt.distill.objective import DistillationObjective
from prunegpt.distill.on_policy import OnPolicy
from prunegpt.distill.teachers import Teacher, check_tokenizers
from prunegpt.lm.blocks import Blocks
from prunegpt.lm.tokenizers import tokenizer_fingerprint
from prunegpt.lm.views import decoder_blocks
from prunegpt.planning.fingerprint import digest, versions
from prunegpt.registry import DISTILLATION_LOSSES
from prunegpt.root import whole
from prunegpt.spec.distilling import Shape, distill_problems, inherited_layers, refuse
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.schema import DistillSpec
from prunegpt.stages.base import ModelState, RemainingLayers, StageContext
from prunegpt.stages.generate import ends_of


def objective_for(plan: StagePlan, state: ModelState, setting: StageContext, blocks: Blocks) -> DistillationObjective:
    """The loss of a `distill` stage. The teacher is loaded from its published stage, or its logits from their cache.

    Raises:
        DistillationError: the teacher does not fit the student.
    """
    config, key = plan.distill, plan.teacher
    assert config is not None
    assert key is not None
    refuse(distill_problems(config, Shape(), Shape()))  # the teacher's layers and tokens are checked where it is run
    loss: DistillationLoss = DISTILLATION_LOSSES.load(config.loss)

    maps: dict[str, Mapping[int, int] | None] = {"layer_map": config.layer_map}

    def load() -> Teacher:
        teacher = setting.teacher(key)
        if config.layer_map is None:
            maps.update(_inherited(state, teacher))
        if config.attention_gain > 0:  # only eager attention gives its maps
            teacher.model.set_attn_implementation("eager")
        shared = check_tokenizers(state.tokenizer, teacher.tokenizer)
        return Teacher(teacher.model, dtype=setting.dtype, vocabulary=shared)

    target = _cached(config, key, load, state, setting, blocks) if config.cache else load()
    if config.attention_gain > 0:
        state.model.set_attn_implementation("eager")
    writer = None
    if config.on_policy:
        assert isinstance(target, Teacher)
        fields = config.on_policy.model_dump()
        writer = OnPolicy(**fields, seed=plan.seed, ends=ends_of(state), vocabulary=target.vocabulary)
    return DistillationObjective(
        target,
        loss.bind(**config.options),
        hardness=config.hardness,
        temperature=config.temperature,
        hidden_gain=config.hidden_gain,
        attention_gain=config.attention_gain,
        layer_map=maps["layer_map"],
        attention_map=maps.get("attention_map"),
        on_policy=writer,
    )


def _inherited(state: ModelState, teacher: ModelState) -> dict[str, Mapping[int, int] | None]:
    """Which layers are compared where a shrink has left some of a depth that both had; else nothing."""
    ours, theirs = state.layers or _all(state), teacher.layers or _all(teacher)
    if ours.of != theirs.of or len(ours.kept) == len(theirs.kept) == ours.of:
        return {}
    return dict(zip(("layer_map", "attention_map"), inherited_layers(ours.kept, theirs.kept), strict=True))


def _all(state: ModelState) -> RemainingLayers:
    depth = len(decoder_blocks(state.model)[1])
    return RemainingLayers(tuple(range(depth)), depth)


def _cached(
    config: DistillSpec, key: str, load: Callable[[], Teacher], state: ModelState, setting: StageContext, blocks: Blocks
) -> TopKCache:
    """The teacher's top-k logits on these blocks: opened where somebody has computed them, else computed now.

    The cache is found by a digest of all that decides its content, so that what one trial finds there is what it would
    have computed.
    """
    assert config.cache is not None
    data = _data_key(blocks.tokens)
    content = {
        "format": FORMAT,
        "teacher": key,
        "data": data,
        "k": config.cache.k,
        "temperature": config.temperature,
        "precision": str(setting.dtype),
        "device": setting.device.type,
        "tokenizer": tokenizer_fingerprint(state.tokenizer),
        "versions": versions(),
    }
    folder: Path = setting.root.teachers / digest(content)
    if whole(folder, "cache.json", deep=True):
        return TopKCache.open(folder, teacher_key=key, data_key=data)
    return build_cache(
        folder,
        load(),
        blocks.tokens,
        teacher_key=key,
        data_key=data,
        k=config.cache.k,
        temperatures=(config.temperature,),
        device=setting.device,
    )


def _data_key(tokens: np.ndarray[Any, Any]) -> str:
    hasher = hashlib.sha256(str(tokens.shape).encode())
    for block in tokens:
        hasher.update(np.ascontiguousarray(block).tobytes())
    return hasher.hexdigest()[:24]
