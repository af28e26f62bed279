"""What goes together in distillation: loss, options, cache, teacher and student. No torch.

One function for each question, asked by the plan of a spec before anything runs, and by the stage that runs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunegpt.errors import DistillationError, UnknownPartError
from prunegpt.registry import DISTILLATION_LOSSES
from prunegpt.spec.part import Message
from prunegpt.spec.problems import option_problems
from prunegpt.spec.schema import DistillSpec


@dataclass(frozen=True)
class Shape:
    """What distillation has to know of a student or a teacher; None where it is not known."""

    blocks: int | None = None
    width: int | None = None  # of hidden states
    heads: int | None = None
    vocabulary: int | None = None  # tokens


def refuse(problems: Iterator[Message]) -> None:
    """Raises DistillationError with all that is wrong."""
    if told := [message for _, message in problems]:
        raise DistillationError(" ".join(told))


def distill_problems(config: DistillSpec, student: Shape, teacher: Shape) -> Iterator[Message]:
    """What is wrong with a distillation, each with its field."""
    if config.cache and (config.hidden_gain or config.attention_gain):
        yield (
            "cache",
            "a cache holds the teacher's logits alone; hidden_gain or attention_gain asks for its states. Remove "
            "cache, or set the gains to 0.",
        )
    if config.on_policy and config.cache:
        yield (
            "on_policy",
            "a cache holds the teacher's logits of the dataset; on_policy asks for those of the student's own text. "
            "Remove cache or on_policy.",
        )
    if config.on_policy and config.hardness == 0:
        yield (
            "on_policy",
            "on_policy trains on the divergence from the teacher, so hardness must be above 0, got 0. Raise it, or "
            "remove on_policy.",
        )
    try:
        yield from loss_problems(config.loss, config.options)
    except UnknownPartError as error:  # a plug-in that does not load
        yield "loss", str(error)
    if teacher.vocabulary:
        counted = {"options.k": config.options.get("k") if config.loss == "top_k" else None}
        counted["cache.k"] = config.cache.k if config.cache else None
        for field, k in counted.items():
            if isinstance(k, int) and k >= teacher.vocabulary:
                yield field, f"k must be 1 to {teacher.vocabulary - 1}, below the vocabulary, got {k}. Try 64."
    if config.hidden_gain or config.attention_gain or config.layer_map is not None:
        yield from _inner_problems(config, student, teacher)


def own_steps(share: float, steps: int) -> int:
    """In how many of the first optimizer steps the student writes its own text, spread evenly."""
    return math.floor(steps * share + 1e-9)


def own_steps_problem(share: float, steps: int) -> str | None:
    """Why a training has no step in which the student writes; None where it has one."""
    if own_steps(share, steps):
        return None
    return (
        f"on_policy must give the student at least one of the {steps} optimizer steps, got share {share:g}. Set it to "
        f"{1 / steps:.2g} or more, train longer, or remove on_policy."
    )


def loss_problems(loss: str, options: Mapping[str, Any]) -> Iterator[Message]:
    """What is wrong with the options of a loss.

    Raises:
        UnknownPartError: there is no such loss, or it is a plug-in that cannot be loaded.
    """
    valid = DISTILLATION_LOSSES.entry(loss).options
    yield from ((f"options.{name}", told) for name, told in option_problems(f"the loss {loss}", options, valid))


def _inner_problems(config: DistillSpec, student: Shape, teacher: Shape) -> Iterator[Message]:
    """What does not fit between the blocks of student and teacher."""
    if student.blocks is None or teacher.blocks is None:
        return
    try:
        match_layers(student.blocks, teacher.blocks, config.layer_map)
    except DistillationError as error:
        yield "layer_map", str(error)
    if config.hidden_gain and student.width and teacher.width and student.width != teacher.width:
        yield (
            "hidden_gain",
            f"hidden states can be compared where they have one width; those of the student have {student.width} and "
            f"those of the teacher {teacher.width}. Set hidden_gain to 0 for this teacher.",
        )
    if config.attention_gain and student.heads and teacher.heads and student.heads != teacher.heads:
        yield (
            "attention_gain",
            f"attention maps are compared head by head; the student has {student.heads} heads and the teacher "
            f"{teacher.heads}. Set attention_gain to 0 for this teacher.",
        )


def inherited_layers(student: Sequence[int], teacher: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Which layers are compared where both models are what a shrink has left of models of one depth.

    The hidden state after a student's layer is what its next layer is given. It is compared with what that layer is
    given in the teacher: the state after the last of the teacher's layers that come before it there. The last meets
    the last. Attention maps are compared with those of the same layer.

    Args:
        student: its layers, as they were numbered before any went.
        teacher: its layers.

    Returns:
        student layer -> teacher layer, of hidden states and of attention maps; layers that have no counterpart are
        left out.
    """
    following = [*student[1:], None]
    hidden = {
        place: len(teacher) - 1 if after is None else sum(layer < after for layer in teacher) - 1
        for place, after in enumerate(following)
    }
    same = {place: teacher.index(layer) for place, layer in enumerate(student) if layer in teacher}
    return {place: layer for place, layer in hidden.items() if layer >= 0}, same


def match_layers(student: int, teacher: int, given: Mapping[int, int] | None = None) -> dict[int, int]:
    """Which block of the teacher each block of the student is compared with.

    With no map given, the student's blocks are spread over the teacher's: block i of n, counted from 1, is compared
    with block ceil(i · m / n) of m, so that each stands for the run of teacher blocks that ends there, and the last
    meets the last. Equal depths give i -> i.

    Args:
        student: its number of blocks.
        teacher: its number of blocks.
        given: student layer -> teacher layer, counted from 0, for some of the blocks or all.

    Raises:
        DistillationError: a block that does not exist, an empty map, or no map for a student that is deeper.
    """
    if given is None:
        if student > teacher:
            raise DistillationError(
                "layers are matched by themselves where the teacher is at least as deep as the student; they have "
                f"{teacher} and {student} blocks. Give layer_map, student layer -> teacher layer."
            )
        return {block: -(-(block + 1) * teacher // student) - 1 for block in range(student)}
    if not given:
        raise DistillationError("layer_map must name a block at least; it is empty. Leave it out to match all blocks.")
    for mine, theirs in given.items():
        for who, block, depth in (("student", mine, student), ("teacher", theirs, teacher)):
            if not 0 <= block < depth:
                raise DistillationError(
                    f"the {who}'s blocks are numbered 0 to {depth - 1}; layer_map has {mine} -> {theirs}."
                )
    return dict(given)
