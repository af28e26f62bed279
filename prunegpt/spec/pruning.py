"""What goes together in pruning: method, allocation, pattern, options, tensors and schedule. No torch.

One function for each question, asked by the plan of a spec before anything runs, and by the stage that runs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from prunegpt.errors import PruneGPTError, PruningError, UnknownPartError, listed
from prunegpt.registry import (
    ACTIVATIONS,
    GATHERED,
    MASK_MODES,
    ON_ACTIVATIONS,
    REFINEMENTS,
    SCHEDULES,
    Entry,
    Scope,
)
from prunegpt.spec.code import method_label
from prunegpt.spec.methods import (
    Allocation,
    allocation_entry,
    allocation_name,
    allocations,
    method_entry,
    reads_text,
    scope_of,
    statistics_of,
)
from prunegpt.spec.names import Matrix, first_matches, select_names
from prunegpt.spec.part import Message
from prunegpt.spec.patterns import Notation, read_pattern
from prunegpt.spec.problems import option_problems
from prunegpt.spec.schedules import Clock, clock_problem, interpolate
from prunegpt.spec.schema import GradualSpec, PruneSpec
from prunegpt.spec.streaming import unstreamed

_TOLERANCE = 1e-6  # of sparsities
_LOOKS = 64  # points at which the curve of a schedule is sampled
_SHOWN = 3  # tensors named in one message


def refuse(problems: Iterator[Message]) -> None:
    """Raises PruningError with all that is wrong."""
    if told := [message for _, message in problems]:
        raise PruningError(" ".join(told))


def prune_problems(
    prune: PruneSpec, matrices: Sequence[Matrix] | None = None, *, length: Mapping[str, float | None] | None = None
) -> Iterator[Message]:
    """What is wrong with a pruning, each with its field.

    Args:
        prune: one-shot, or gradual.
        matrices: of the model; None where they are not known.
        length: of the training, by unit, as far as it is known.
    """
    chosen: list[Matrix] | None = None
    if matrices is not None:
        names, wrong = select_names(matrices, targets=prune.targets, layers=prune.layers, exclude=prune.exclude)
        yield from (("", message) for message in wrong)
        if not wrong:
            selected = set(names)
            chosen = [matrix for matrix in matrices if matrix.name in selected]
    try:
        method, spread = method_entry(prune.method), allocation_entry(prune.allocation)
    except UnknownPartError as error:  # a plug-in that does not load
        yield "", str(error)
        return
    pattern = read_pattern(prune.pattern)
    yield from request_problems(
        method_label(prune.method),
        method,
        prune.allocation,
        pattern,
        prune.sparsity,
        prune.options,
        chosen,
        training=isinstance(prune, GradualSpec),
        mode=prune.mode if isinstance(prune, GradualSpec) else None,
        refine=prune.refine,
    )
    if prune.repair and scope_of(method, prune.allocation) == "global":
        yield (
            "repair",
            "repair goes layer by layer, each repaired before the next is pruned; allocation global compares all "
            f"layers at once. Use {allocations(but=('global',))}.",
        )
    if prune.stream is True and (problem := unstreamed(prune)):
        yield "stream", problem
    if prune.repair and chosen is not None and (apart := [one.name for one in chosen if one.block is None]):
        yield (
            "repair",
            f"repair needs matrices of decoder layers, got {apart[0]}. Leave it out of targets, or prune it in a stage "
            "of its own.",
        )
    if chosen is not None:
        if isinstance(prune.allocation, Mapping):
            wrong = first_matches([matrix.name for matrix in chosen], list(prune.allocation))[1]
            yield from (("allocation", message) for message in wrong)
        if prune.curves:
            yield from _curve_problems(prune, chosen)
        if reads_text(prune):
            yield from _embedding_problems(prune, spread, chosen)
    if isinstance(prune, GradualSpec):
        yield from _gradual_problems(prune, method, pattern, chosen, length or {})


def request_problems(
    name: str,
    method: Entry,
    allocation: Allocation,
    pattern: Notation,
    sparsity: float | None,
    options: Mapping[str, Any],
    chosen: Sequence[Matrix] | None,
    *,
    training: bool,
    mode: str | None = None,
    refine: str | None = None,
) -> Iterator[Message]:
    """What does not go together in one call of a method.

    Args:
        name: of the method, in messages.
        method: what is known of it.
        allocation: a name, or pattern -> sparsity, or None.
        pattern: the shape of sparsity.
        sparsity: asked for; None where the pattern or the allocation says it.
        options: of method, allocation, mode and refinement together.
        chosen: the tensors to prune; None where they are not known.
        training: whether masks change while the model trains.
        mode: how masks live in training; None where they do not change there.
        refine: what betters the mask that a criterion chooses; None: nothing.
    """
    if method.only_in_training and not training:
        yield (
            "method",
            f"{name} uses weight movement in training, so it must be the method of finetune.prune or distill.prune; it "
            "is that of a one-shot prune stage. Choose another here, such as magnitude or taylor.",
        )
    if allocation == "explicit":
        yield (
            "allocation",
            "allocation explicit needs the sparsity of each tensor; only its name is given. Write {name pattern: "
            "sparsity} instead.",
        )
        return
    spread = allocation_entry(allocation)
    if method.solver:
        yield from _solver_problems(name, spread.scope, allocation, pattern)
    if refine:
        yield from _refine_problems(name, method, allocation, pattern)
    apart = next((one for one in chosen or () if one.block is None and not one.embedding), None)
    if apart and "regional_gradient" in method.needs:
        yield (
            "targets",
            f"{name} scores by the output of the decoder layer that a matrix is in, got {apart.name}, which is in "
            "none. Leave it out of targets, or prune it by wanda in a stage of its own.",
        )
    if pattern.sparsity is not None:
        yield from _group_problems(name, method, allocation, spread, pattern, pattern.sparsity, sparsity, chosen or ())
    yield from _block_problems(pattern, chosen or ())
    owners = {
        allocation_name(allocation): spread.valid_options,
        **({mode: MASK_MODES.entry(mode).valid_options} if mode else {}),
    }
    owners |= {refine: REFINEMENTS.entry(refine).valid_options} if refine else {}
    valid = {**method.valid_options, **{option: kind for own in owners.values() for option, kind in own.items()}}
    owner = " and ".join([name, *(other for other, own in owners.items() if own)])
    yield from ((f"options.{option}", told) for option, told in option_problems(owner, options, valid))


def _solver_problems(name: str, scope: Scope | None, allocation: Allocation, pattern: Notation) -> Iterator[Message]:
    if scope in ("row", "global"):
        yield (
            "allocation",
            f"{name} is a solver: it chooses weights within a layer while it solves, so it cannot compare by "
            f"{allocation_name(allocation)}. Use {allocations(but=('row', 'global'))}, or a criterion such as wanda.",
        )
    if pattern.kind == "block":
        yield (
            "pattern",
            f"{name} prunes to unstructured and N:M patterns, got {pattern.name}. Use a criterion such as magnitude or "
            "wanda for blocks.",
        )


def _refine_problems(name: str, method: Entry, allocation: Allocation, pattern: Notation) -> Iterator[Message]:
    if method.solver:
        yield (
            "refine",
            f"refine exchanges weights of a mask that scores chose; {name} is a solver, which writes the weights that "
            "it keeps. Use a criterion such as magnitude or wanda, or leave refine out.",
        )
    if scope_of(method, allocation) == "global":
        yield (
            "refine",
            "refine goes layer by layer, each refined before the next is pruned; allocation global compares all layers "
            f"at once. Use {allocations(but=('global',))}.",
        )
    if pattern.kind == "block":
        yield (
            "refine",
            f"refine exchanges single weights of a row or of a group N:M, got {pattern.name}. Use pattern unstructured "
            "or 2:4, or leave refine out.",
        )


def _group_problems(
    name: str,
    method: Entry,
    allocation: Allocation,
    spread: Entry,
    pattern: Notation,
    fixed: float,
    sparsity: float | None,
    chosen: Sequence[Matrix],
) -> Iterator[Message]:
    """What does not go with a pattern N:M, which every group of every tensor has to keep."""
    asked = list(allocation.values()) if isinstance(allocation, Mapping) else [] if sparsity is None else [sparsity]
    other = next((value for value in asked if abs(value - fixed) > _TOLERANCE), None)
    if other is not None:
        field = "allocation" if isinstance(allocation, Mapping) else "sparsity"
        yield (
            field,
            f"pattern {pattern.name} fixes the sparsity of every tensor at {fixed:g}; {field} asks for {other:g}. "
            "Remove one.",
        )
    elif isinstance(allocation, str) and spread.scope is None:
        yield (
            "allocation",
            f"pattern {pattern.name} fixes the sparsity of every tensor at {fixed:g}, so that allocation {allocation} "
            f"has nothing to spread. Use uniform, or pattern unstructured.",
        )
    wrong = [matrix for matrix in chosen if matrix.shape[1] % pattern.second]
    if wrong:
        listed = ", ".join(f"{matrix.name} {list(matrix.shape)}" for matrix in wrong[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        yield (
            "pattern",
            f"{pattern.name} needs an input axis divisible by {pattern.second}; that of {listed}{more} ([out, in]) is "
            "not. Leave them out of targets, or choose a group that divides it.",
        )


def _block_problems(pattern: Notation, chosen: Sequence[Matrix]) -> Iterator[Message]:
    """A block that is larger than a matrix is all of it: kept or pruned whole, whatever was asked for."""
    wrong = [one for one in chosen if one.shape[0] < pattern.first or one.shape[1] < pattern.second]
    if pattern.kind == "block" and wrong:
        yield (
            "pattern",
            f"a block {pattern.name} must fit into every matrix; {wrong[0].name} is {list(wrong[0].shape)} ([out, "
            "in]). Choose a smaller block, or leave the matrix out of targets.",
        )


def _curve_problems(prune: PruneSpec, chosen: Sequence[Matrix]) -> Iterator[Message]:
    """What measured curves do not reach."""
    sizes: dict[str, int] = {}
    for matrix in chosen:
        sizes[str(matrix.block)] = sizes.get(str(matrix.block), 0) + math.prod(matrix.shape)
    if missing := [block for block in sizes if not prune.curves.get(block)]:
        yield (
            "allocation",
            "sensitivity needs a measured curve of every block that is pruned; the sweep has none of "
            f"{listed(missing)}. Measure it, or leave the block out.",
        )
        return
    reach = sum(size * max(level for level, _ in prune.curves[block]) for block, size in sizes.items())
    if prune.sparsity is not None and reach / sum(sizes.values()) < prune.sparsity - _TOLERANCE:
        yield (
            "sparsity",
            "sensitivity prunes no block beyond the last point of its curve, which reaches a sparsity of "
            f"{reach / sum(sizes.values()):g} over all; {prune.sparsity:g} was asked for. Measure the curves at higher "
            "sparsities.",
        )


def _embedding_problems(prune: PruneSpec, spread: Entry, chosen: Sequence[Matrix]) -> Iterator[Message]:
    looks = statistics_of(prune) & ACTIVATIONS or spread.needs & ON_ACTIVATIONS
    if looks and (found := next((matrix.name for matrix in chosen if matrix.embedding), None)):
        yield (
            "targets",
            f"{found} is an embedding, whose inputs are token ids: activation-aware methods cannot prune it. "
            f"Leave it out of targets, or use magnitude.",
        )


# -- pruning while training --------------------------------------------------------------------------------------------


def _gradual_problems(
    prune: GradualSpec,
    method: Entry,
    pattern: Notation,
    chosen: Sequence[Matrix] | None,
    length: Mapping[str, float | None],
) -> Iterator[Message]:
    finals = _finals(prune, pattern, chosen)
    regrow = prune.regrow or prune.schedule == "acdc" or prune.mode != "projected"
    yield from mode_problems(prune.mode, prune.method, {})
    if prune.regrow and prune.mode != "projected":
        yield (
            "regrow",
            f"regrow is of mode projected, got mode {prune.mode}, in which weights always come back. Remove it.",
        )
    highest = max(finals, default=0.0)
    if prune.initial > highest + _TOLERANCE and (not regrow or pattern.sparsity is not None):
        yield (
            "initial",
            f"sparsity grows from initial to the final one; initial is {prune.initial:g} and the final sparsity at "
            f"most {highest:g}. Set a smaller initial, or regrow: true to let weights come back.",
        )
    shares = _shares(prune.schedule)
    falls = any(later < earlier for earlier, later in pairwise(shares))
    if shares[-1] != 1.0 or min(shares) < 0.0 or max(shares) > 1.0 or (falls and not regrow):
        yield (
            "schedule",
            "a schedule must be between 0 and 1, end at 1, and never fall where weights may not come back; "
            f"{prune.schedule} goes from {shares[0]:g} to {shares[-1]:g}, between {min(shares):g} and {max(shares):g}. "
            "Choose another schedule, or regrow: true.",
        )
    if method.solver and pattern.sparsity is not None:
        levels = [interpolate(share, pattern.sparsity, prune.initial) for share in shares]
        if any(_TOLERANCE < level < pattern.sparsity - _TOLERANCE for level in levels):
            yield (
                "pattern",
                f"{prune.method} prunes {pattern.name} to its full sparsity of {pattern.sparsity:g}; schedule "
                f"{prune.schedule} asks for less on the way. Use schedule constant, or a criterion such as wanda.",
            )
    limit = length.get(prune.unit)
    if problem := clock_problem(start=prune.start, end=prune.end, unit=prune.unit, grid=prune.clock, limit=limit):
        yield "", problem
        return
    if prune.start == 0 and interpolate(shares[0], highest, prune.initial) > 0:
        yield from _unseen(method_label(prune.method), method, prune.schedule, prune.initial)
    end = prune.end if prune.end is not None else None if limit is None else limit / 2
    if prune.schedule == "acdc" and end is not None and prune.every >= (end - prune.start) * (1 - _TOLERANCE):
        yield (
            "every",
            "acdc needs a dense and a compressed phase, so that every must be less than end - start, got "
            f"{prune.every:g} of {end - prune.start:g} {prune.unit}. Make it smaller: it is the length of a phase.",
        )


def mode_problems(mode: str, method: str, options: Mapping[str, Any]) -> Iterator[Message]:
    """What does not go with a mode of masks in training."""
    if mode != "projected" and method_entry(method).solver:
        yield (
            "mode",
            f"mode {mode} chooses masks by scores alone; {method} is a solver, which writes the weights that it keeps. "
            "Use a criterion such as magnitude or wanda, or mode projected.",
        )
    yield from (
        (f"options.{name}", told) for name, told in option_problems(mode, options, MASK_MODES.entry(mode).valid_options)
    )


def optimizer_problem(mode: str, optimizer: str) -> str | None:
    """Why a mode of masks has no effect with an optimizer, by its name in transformers."""
    if mode == "elsa" and optimizer == "sgd":
        return (
            "mode elsa pulls at weights by a gradient that the optimizer scales as Adam does; optim sgd takes it as it "
            "is, so that the pull is too weak to prune by, got sgd. Use adamw_torch, or mode projected."
        )
    return None


def update_problems(prune: GradualSpec, clock: Clock) -> Iterator[Message]:
    """What is wrong with a pruning once it is known before which steps masks change."""
    try:
        first = clock.share(prune.schedule, clock.start)
    except PruneGPTError as error:
        yield "every", str(error)
        return
    highest = max(_finals(prune, read_pattern(prune.pattern), None))
    if clock.start == 0 and interpolate(first, highest, prune.initial) > 0:
        yield from _unseen(method_label(prune.method), method_entry(prune.method), prune.schedule, prune.initial)


def _unseen(name: str, method: Entry, schedule: str, initial: float) -> Iterator[Message]:
    """What a method would have to know before the first step."""
    if gathered := method.needs & GATHERED:
        yield (
            "start",
            f"{name} must see at least one optimizer step before it chooses weights; masks are to change before the "
            f"first step (schedule {schedule}, initial {initial:g}; it gathers {', '.join(sorted(gathered))}). Let "
            "start come later, or set initial to 0 with a schedule that grows.",
        )


def _finals(prune: GradualSpec, pattern: Notation, chosen: Sequence[Matrix] | None) -> list[float]:
    """The sparsities that tensors end with, as far as the spec says them: of what spreads a sparsity, the mean."""
    usual = prune.sparsity if prune.sparsity is not None else pattern.sparsity or 0.0
    if not isinstance(prune.allocation, Mapping):
        return [usual]
    if chosen is None:
        return [usual, *prune.allocation.values()]
    names = [matrix.name for matrix in chosen]
    decided = first_matches(names, list(prune.allocation))[0]
    return [prune.allocation[decided[name]] if name in decided else usual for name in names]


def _shares(schedule: str) -> list[float]:
    """How far a schedule has come at points from start to end; of acdc, its two phases."""
    if schedule == "acdc":
        return [0.0, 1.0]
    part = SCHEDULES.load(schedule)
    return [float(part(look / _LOOKS)) for look in range(_LOOKS + 1)]
