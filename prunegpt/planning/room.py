"""Whether the stages of a trial fit the memory that it would get, by the estimates of `planning.memory`."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from prunegpt.errors import LaunchError, in_bytes, listed
from prunegpt.planning.budget import micro_batch
from prunegpt.planning.facts import ModelFacts
from prunegpt.planning.memory import EVALUATED, FLOAT, HALF, Memory, Sizes, mask_bytes, optimizer_bytes
from prunegpt.planning.outlines import before_each, outline_of
from prunegpt.planning.precision import accelerator_here, accelerators_here
from prunegpt.planning.teachers import ResolvedTrial
from prunegpt.registry import GRADIENTS
from prunegpt.spec.execution import LauncherSpec
from prunegpt.spec.methods import statistics_of
from prunegpt.spec.plan import PlannedEvaluation, StagePlan
from prunegpt.spec.streaming import unstreamed

_HINTS = {
    "evaluation": "Set evaluate.batch_size, or precision: bfloat16.",
    "prune": "Use fewer calibration windows, or a method that goes layer by layer, without stream: false.",
    "training": "Lower per_device_train_batch_size with more gradient_accumulation_steps, or set "
    "gradient_checkpointing, precision: bfloat16 or an adapter.",
}


@dataclass(frozen=True)
class Room:
    """Memory that a trial would get."""

    device: str  # cuda, for any accelerator, or cpu
    size: int  # bytes

    def __str__(self) -> str:
        return f"{in_bytes(self.size)} of {'the GPU' if self.device == 'cuda' else 'memory'}"


def room_for(device: str, launcher: LauncherSpec) -> Room | None:
    """The memory that a trial would get; None where it is not known, as of the nodes of a cluster.

    Args:
        device: as a trial names it.
    """
    if launcher.kind != "local":
        return None
    accelerator = 0 if device in ("cpu", "mps") else accelerator_here()
    if accelerator:
        return Room("cuda", accelerator // _trials_of_one(launcher))
    return Room("cpu", free_memory() // (launcher.slots or 1)) if device != "cuda" else None


def _trials_of_one(launcher: LauncherSpec) -> int:
    """How many trials share an accelerator of this machine, where the launcher `local` spreads them."""
    if launcher.gpus:
        return 1
    return math.ceil(launcher.slots / accelerators_here()) if launcher.slots else launcher.slots_per_gpu


def free_memory() -> int:
    """Bytes of the host's memory that are available, or all of it where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@lru_cache(64)
def sizes_of(facts: ModelFacts | None) -> Sizes | None:
    """What memory depends on of a model that is not loaded; None where its tensors are not known."""
    known = outline_of(facts) if facts else None
    if facts is None or known is None or not facts.width or not facts.embedding_rows:
        return None
    active = facts.text_config.get("num_experts_per_tok")
    return Sizes.of(known, width=facts.width, vocabulary=facts.embedding_rows, active=active if active else 1)


def needs(
    found: ResolvedTrial, launcher: LauncherSpec, device: str, size: float = math.inf
) -> Iterator[tuple[StagePlan, str, int]]:
    """What the stages of a trial take at their peak, in bytes, with the job: evaluation, prune or training.

    Args:
        device: cuda, for any accelerator, or cpu.
        size: bytes of the device: pruning that takes more is streamed where it can be.
    """
    trial = found.trial
    half = trial.precision in ("bfloat16", "float16")
    teachers = {one.trial.key: sizes_of(one.final) for one in found.teachers}
    shapes = before_each(found.facts, [stage.shrink for stage in trial.stages])
    held = False  # whether an earlier stage has pruned
    for stage, before, after in zip(trial.stages, shapes, shapes[1:], strict=False):
        given, left = sizes_of(before), sizes_of(after)
        if given is not None:
            eager = stage.model.attention == "eager" or bool(stage.distill and stage.distill.attention_gain)
            memory = Memory(given, half, device, heads=_heads(before) if eager else 0)
            yield from _computing(stage, memory, teachers.get(stage.teacher or ""), launcher, size, held=held)
        held = held or stage.pruning is not None
        for one in trial.evaluations_after(stage.key) if left else ():
            if one.evaluate.kind == "text":
                assert left is not None
                heads = _heads(after) if stage.model.attention == "eager" else 0
                measured = Memory(left, one.evaluate.precision in ("bfloat16", "float16"), device, heads=heads)
                alone = stage.key == trial.key and len(trial.evaluations) == 1
                yield (
                    stage,
                    "evaluation",
                    measured.evaluation(_at_once(one), length=one.evaluate.block_size or 1, alone=alone),
                )


def _heads(facts: ModelFacts | None) -> int:
    return (facts.heads if facts else None) or 0


def _at_once(planned: PlannedEvaluation) -> int:
    """Tokens that are evaluated on at a time; fewer are tried where those do not fit."""
    spec = planned.evaluate
    length = spec.block_size or 1
    return length * spec.batch_size if isinstance(spec.batch_size, int) else max(EVALUATED, length)


def _computing(
    stage: StagePlan, memory: Memory, teacher: Sizes | None, launcher: LauncherSpec, room: float, *, held: bool
) -> Iterator[tuple[StagePlan, str, int]]:
    calibration = stage.calibration
    if stage.prune and calibration:
        wanted = statistics_of(stage.prune)
        stored = replace(memory, half=False, stored=FLOAT if stage.storage == "float32" else HALF)
        asked = stage.prune.method, wanted, calibration.windows, calibration.length or 1
        size, stream = stored.one_shot(*asked, repair=stage.prune.repair), stage.prune.stream
        saves = memory.device == "cuda" or (stream is True and wanted & GRADIENTS)
        may = stream is not False and saves and not unstreamed(stage.prune)
        yield stage, "prune", stored.streamed(*asked) if may and (stream is True or size > room) else size
    batch = 0
    if stage.training:
        with suppress(LaunchError):  # sequences that processes cannot share evenly, which the launch reports
            batch, _ = micro_batch(stage.training.train, 1, launcher.ranks)
    if stage.training and stage.data and batch:
        train, prune = stage.training.train, stage.training.prune
        distilled = None
        if stage.distill:
            size = (HALF if memory.half else FLOAT) * teacher.parameters if teacher else 0
            distilled = 0 if stage.distill.cache else size
        yield (
            stage,
            "training",
            memory.training(
                batch * stage.data.block_size,
                length=stage.data.block_size,
                masks=mask_bytes(prune, held=held and stage.training.keep_masks),
                update=memory.updating(prune) if prune else 0,
                optimizer=optimizer_bytes(train),
                distilled=distilled,
                checkpointing=any(train.get(f"{what}_checkpointing") for what in ("gradient", "activation")),
                frozen=stage.training.adapter is not None,
                processes=launcher.ranks,
                sharded=bool(train.get("fsdp")),
            ),
        )


def room_notes(known: Sequence[ResolvedTrial], launcher: LauncherSpec, done: Callable[[str], bool]) -> list[str]:
    """Stages that by estimate do not fit the memory that their trial would get, each shortage once.

    Args:
        done: whether the stage of a key is computed already.
    """
    short: dict[str, list[str]] = {}  # shortage -> trials
    rooms = {device: room_for(device, launcher) for device in {found.trial.device for found in known}}
    for found in known:
        room = rooms[found.trial.device]
        for stage, job, size in needs(found, launcher, room.device, room.size) if room else ():
            if room and size > room.size and not done(stage.key):
                what = f"evaluating after {stage.kind}" if job == "evaluation" else stage.kind
                text = f"{what} takes about {in_bytes(size)} by estimate, and there are {room}. {_HINTS[job]}"
                short.setdefault(text, []).append(found.trial.name)
    return [f"{listed(dict.fromkeys(names), 2)}: {text}" for text, names in short.items()]
