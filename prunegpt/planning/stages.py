"""Stages and their keys: the hash of all that decides a stage's result, and of nothing else.

Names, labels, tables, what is written on the way and how fast it goes are not in a key; a file's content is, its name
and date are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunegpt.planning.budget import evaluates
from prunegpt.planning.facts import ModelFacts
from prunegpt.planning.fingerprint import FORMAT, decisive, digest, extra_versions, machine, versions
from prunegpt.planning.rehearsed import OWN_OPTIMIZERS
from prunegpt.planning.texts import Texts
from prunegpt.spec.code import CodePart
from prunegpt.spec.methods import method_entry, reads_text
from prunegpt.spec.plan import PlannedEvaluation, StagePlan
from prunegpt.spec.schema import CalibrationSpec, DataSpec, DistillSpec, FinetuneSpec, PruneSpec, StageConfig
from prunegpt.spec.shrink import ShrinkSpec
from prunegpt.spec.training_arguments import chooses, neutral_in

# Left out of the config in a key: there in another form, or without influence.
_NOT_IN_KEY = {"train", "data", "prune", "recipe", "recipe_args", "teacher", "keep_checkpoints"}


@dataclass(frozen=True)
class StagePlace:
    """What a stage takes from the chain and its trial."""

    before: StagePlan
    seed: int
    device: str
    precision: str
    train: Mapping[str, Any]
    data: DataSpec  # located
    evaluation: PlannedEvaluation  # the first; trainings use it while they run, skipped or not
    texts: Texts
    watched: bool = False  # whether early stopping compares what is evaluated while it trains


WATCHED_EVERY = 0.1  # of a training's steps, between the evaluations that early stopping compares
_WHEN_EVALUATED = frozenset({"eval_strategy", "eval_steps"})


def source_stage(facts: ModelFacts, precision: str, seed: int) -> StagePlan:
    """Where a chain starts: a stored model as it is, the built-in one, which is trained first, or random weights.

    Libraries are in the key of a stored model too: it is measured with them.
    """
    model = facts.model
    payload: dict[str, Any] = {"format": FORMAT, "model": facts.fingerprint, "remote_code": model.trust_remote_code}
    payload["versions"] = versions()
    if model.attention:
        payload["attention"] = model.attention
    if model.weights == "random":
        return StagePlan(key=digest({**payload, "kind": "init", "seed": seed}), kind="init", model=model, seed=seed)
    if not facts.builtin:
        key = digest({**payload, "kind": "load"})
        return StagePlan(key=key, kind="load", model=model, storage=facts.stored)
    key = digest({**payload, "kind": "pretrain", "precision": precision})
    return StagePlan(key=key, kind="pretrain", model=model, data=DataSpec(path="builtin:text"))


def next_stage(config: StageConfig, place: StagePlace, teacher: str | None = None) -> StagePlan:
    """The stage that a config means at its place in a chain.

    Args:
        teacher: key of the stage whose model teaches, for a DistillSpec.

    Raises:
        DataError: a text or its split is missing.
    """
    if isinstance(config, PruneSpec):
        return _prune(config, place)
    if isinstance(config, ShrinkSpec):
        return _shrink(config, place)
    return _train(config, place, teacher)


def _prune(config: PruneSpec, place: StagePlace) -> StagePlan:
    filled, text = _filled(config, place.data, place)
    payload = {**_common("prune", place), "prune": text}
    if place.before.storage != "float32":  # which is computed in; of float32 keys are as they were before this
        payload["storage"] = place.before.storage
        if config.repair:
            payload["repaired"] = "float32"  # what was trained in fewer digits was worse
    if method_entry(config.method).draws or config.repair:
        payload["seed"] = place.seed
    return StagePlan(
        key=digest(payload),
        kind="prune",
        parent=place.before.key,
        model=place.before.model,
        prune=filled,
        data=place.data,
        storage=place.before.storage,
        seed=place.seed,
    )


def _shrink(config: ShrinkSpec, place: StagePlace) -> StagePlan:
    text = {name: value for name, value in config.model_dump(exclude={"calibration"}).items() if config.decides(name)}
    calibration = CalibrationSpec()
    if config.reads_text:
        calibration, text["calibration"] = place.texts.calibration(place.data, config.calibration, place.seed)
    measured_on = machine() if config.budget and config.budget.measured else ""
    if measured_on:
        text["measured"] = [place.device, measured_on]
    return StagePlan(
        key=digest({**_common("shrink", place), "shrink": text}),
        kind="shrink",
        parent=place.before.key,
        model=place.before.model,
        shrink=config.model_copy(update={"calibration": calibration}),
        measured_on=measured_on,
        data=place.data,
        storage=place.before.storage,  # it leaves weights out and changes none: its key need not say
        seed=place.seed,
    )


def _train(config: FinetuneSpec, place: StagePlace, teacher: str | None) -> StagePlan:
    kind = "distill" if isinstance(config, DistillSpec) else "finetune"
    data = place.texts.of_stage(config.data, place.data)
    train = {**place.train, **config.train}
    if place.watched and not train.get("fsdp") and not train.keys() & _WHEN_EVALUATED:
        train |= {"eval_strategy": "steps", "eval_steps": WATCHED_EVERY}
    update: dict[str, Any] = {"train": train, "data": data}
    text = decisive(config, ("keep_zeros", "loss_on", "adapter", "on_policy"), without=_NOT_IN_KEY)
    if config.prune:
        update["prune"], text["prune"] = _filled(config.prune, data, place)
    neutral = neutral_in(train)
    watching = place.texts.watching(place.evaluation) if evaluates(train) else None
    payload = {
        **_common(kind, place),
        "seed": place.seed,
        "data": place.texts.fingerprint(data, data.train_split),
        "block_size": data.block_size,
        "max_train_blocks": data.max_train_blocks,
        "train": {name: value for name, value in train.items() if name not in neutral},
        "config": text,
        "teacher": teacher,
        "chosen_by": watching if chooses(train) else None,
    }
    if train.get("optim", "adamw_torch") not in OWN_OPTIMIZERS or train.get("use_liger_kernel"):
        payload["extras"] = extra_versions()
    return StagePlan(
        key=digest(payload),
        kind=kind,
        parent=place.before.key,
        teacher=teacher,
        model=place.before.model,
        data=data,
        seed=place.seed,
        neutral={name: value for name, value in train.items() if name in neutral},
        **{kind: config.model_copy(update=update)},
    )


def _common(kind: str, place: StagePlace) -> dict[str, Any]:
    return {
        "kind": kind,
        "format": FORMAT,
        "parent": place.before.key,
        "precision": place.precision,
        "versions": versions(),
    }


def _filled(prune: PruneSpec, data: DataSpec, place: StagePlace) -> tuple[PruneSpec, dict[str, Any]]:
    """The pruning with its calibration data filled in, and the part that goes into the key."""
    text = decisive(prune, ("refine", "repair", "mode"), without=("calibration", "propagate", "stream"))
    if code := CodePart.of(prune.method):
        text["method"] = code.decisive
    if isinstance(prune.allocation, Mapping):
        text["allocation"] = list(prune.allocation.items())  # in order: the first pattern that matches decides
    if not reads_text(prune):
        return prune.model_copy(update={"calibration": CalibrationSpec()}), text
    calibration, drawn = place.texts.calibration(data, prune.calibration, place.seed)
    filled = prune.model_copy(update={"calibration": calibration})
    return filled, {**text, "calibration": drawn, "propagate": prune.propagate}
