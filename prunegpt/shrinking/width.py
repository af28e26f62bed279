"""Which feed-forward neurons, heads and hidden channels stay, and the model of those."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunegpt.errors import ShrinkError
from prunegpt.lm.device import in_double
from prunegpt.lm.views import WeightView, all_matrices
from prunegpt.pruning.statistics import block_statistics, evaluating, gradient_statistics
from prunegpt.shrinking.axes import Axis, by_group, channel_axes, followers, grouped_axes, split
from prunegpt.shrinking.cut import Cut, Slice, build, filled
from prunegpt.shrinking.pieces import Piece, pieces
from prunegpt.shrinking.twin import apart, masked
from prunegpt.spec.shapes import text_part
from prunegpt.spec.widths import groups_of, hidden_of, queries_of

WIDTHS = {"ffn": "feed-forward size", "heads": "number of heads", "hidden": "hidden size"}
BOTH = ("heads", "hidden")  # cut at once where the size of a head is their quotient
_NUMBER = re.compile(r"\d+")
_TRIED = 64  # layouts
Importance = Mapping[str, Tensor]  # group -> float64 [members]


@torch.no_grad()
def cut_width(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    what: tuple[str, ...],
    score: Callable[[PreTrainedModel, Sequence[Axis]], Importance],
) -> tuple[Cut, list[dict[str, Any]]]:
    """A model of the neurons, heads or channels with the highest scores, in the order that they had.

    The logits of both models are compared on a few tokens, the larger one with the same members masked. Where members
    may be stored in a fused matrix in more than one order, the one that agrees is used.

    Args:
        model: a causal language model.
        config: that of the smaller model, which differs in these sizes.
        what: one of :data:`WIDTHS`, or :data:`BOTH`.
        score: gives the importance of the members of every group, such as :func:`activation_importance`.

    Returns:
        The smaller model, and a row of each layer: how many stay of how many, and the share of the importance that
        they have.

    Raises:
        ShrinkError: the family cannot express it.
    """
    smaller = build(model, config)
    old, new = pieces(model), pieces(smaller)
    axes = axes_between(model, old, new, what)
    importance = score(model, axes)
    kept = {group: highest(importance[group], _members(new, of_group)) for group, of_group in by_group(axes).items()}
    text = text_part(model.config.to_dict())
    queries = (queries_of(text) or 1) // (groups_of(text) or 1) if "heads" in what else 0
    called = " and ".join(WIDTHS[one] for one in what)
    cut = _laid_out(model, smaller, old, new, axes, kept, queries, called)
    return cut, _rows(importance, kept)


def axes_between(
    model: PreTrainedModel, old: Mapping[str, Piece], new: Mapping[str, Piece], what: tuple[str, ...]
) -> list[Axis]:
    """Where the neurons, heads or channels of a model are that a smaller one has fewer of.

    Args:
        old, new: the pieces of both; they may be on the meta device.
        what: one of :data:`WIDTHS`, or :data:`BOTH`.

    Raises:
        ShrinkError: the family cannot express it.
    """
    family, text = type(model).__name__, text_part(model.config.to_dict())
    called = " and ".join(WIDTHS[one] for one in what)
    found = followers(old, new, family, called, sides=len(what))
    hidden, groups = hidden_of(text) or 0, groups_of(text) if "heads" in what else None
    if what == BOTH:
        channels, found = split(old, found, hidden)
        return [*channel_axes(old, channels, hidden, family), *grouped_axes(model, old, found, called, groups)]
    if what == ("hidden",):
        return channel_axes(old, found, hidden, family)
    return grouped_axes(model, old, found, called, groups)


def highest(scores: Tensor, count: int) -> Tensor:
    """The members with the highest scores, ascending; of equal ones the first: int64 [count]."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _members(new: Mapping[str, Piece], axes: Sequence[Axis]) -> int:
    """How many members of a group the smaller model has."""
    axis = next(axis for axis in axes if axis.reads)
    return new[axis.piece].tensor.shape[axis.dimension] // sum(axis.sections)


def _rows(importance: Importance, kept: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """A row of each layer; experts of a layer are one."""
    shares: dict[str, list[float]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for group, stays in kept.items():
        place = group.partition("[")[0] or "hidden states"
        total = importance[group].sum().item()
        shares.setdefault(place, []).append(importance[group][stays].sum().item() / total if total else 1.0)
        sizes[place] = len(stays), len(importance[group])
    return [
        {"part": place, "kept": count, "of": whole, "importance_kept": sum(shares[place]) / len(shares[place])}
        for place, (count, whole) in sizes.items()
    ]


# -- importance ------------------------------------------------------------------------------------------------------


def activation_importance(
    model: PreTrainedModel,
    axes: Sequence[Axis],
    windows: Tensor,
    *,
    calibrated: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Tensor]:
    """How large the activations of each member are: their Euclidean norm over all calibration tokens.

    Muralidharan et al. 2024 (Minitron, arXiv 2407.14679), section 2.2: of a neuron its activation, of a head its
    output, of a channel the outputs of the norms, summed over the layers. They are aggregated by the Euclidean norm
    over tokens here, which does not depend on how windows are batched. What is seen are the inputs of the matrices that
    read the members.

    Args:
        axes: where the members are.
        windows: token ids, int64 [windows, length].
        calibrated: called with the layers that are done, and their number.
    """
    views = _views(model, [axis for axis in axes if axis.reads])
    importance = {axis.group: torch.zeros(axis.members, dtype=torch.float64) for axis in axes}
    place = {axis.piece: axis for axis in axes if axis.reads}
    done = 0
    with evaluating(model):
        for found in block_statistics(model, views, windows, gram=False, propagate=False):
            inputs = {(place[name].group, id(seen)): (place[name], seen) for name, seen in found.items()}  # each once
            for axis, seen in inputs.values():
                if seen is not None and seen.tokens:
                    squares = seen.input_norm.cpu().double().square()  # [in]
                    importance[axis.group] += axis.summed(squares).sqrt()
            done += len(found)
            calibrated(done, len(views))
    return importance


def taylor_importance(
    model: PreTrainedModel,
    axes: Sequence[Axis],
    windows: Tensor,
    *,
    calibrated: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Tensor]:
    """How much the loss changes without each member, to first order: the sum of |g · w| over its weights.

    Ma et al. 2023 (LLM-Pruner, arXiv 2305.11627), section 3.2, element-wise importance of first order, summed over
    coupled structures. g is the gradient of the mean loss of the calibration windows, w a weight of any matrix that
    writes or reads the member.

    Args:
        axes: where the members are.
        windows: token ids, int64 [windows, length].
        calibrated: called with the windows that are done, and their number.
    """
    views = _views(model, axes)
    gradients = gradient_statistics(model, views, windows, calibrated=calibrated).gradient
    found = {axis.group: torch.zeros(axis.members, dtype=torch.float64) for axis in axes}
    for axis in axes:
        if axis.piece in views:
            change = in_double((gradients[axis.piece] * views[axis.piece].matrix).abs())  # [out, in]
            found[axis.group] += axis.summed(change.sum(dim=1 - axis.dimension).cpu())  # [members]
    return found


def _views(model: PreTrainedModel, axes: Sequence[Axis]) -> dict[str, WeightView]:
    names = {axis.piece for axis in axes}
    return {name: view for name, view in all_matrices(model).items() if name in names}


# -- the cut ---------------------------------------------------------------------------------------------------------


def _slices(old: Mapping[str, Piece], axes: Sequence[Axis], kept: Mapping[str, Tensor]) -> dict[str, Slice]:
    """What stays of each piece."""
    found = {name: Slice(name) for name in old}
    for axis in axes:
        stays = [*found[axis.piece].index] or [None] * old[axis.piece].tensor.dim()
        stays[axis.dimension] = tuple(axis.positions(kept[axis.group]).tolist())
        found[axis.piece] = Slice(axis.piece, tuple(stays))
    return found


def _laid_out(
    model: PreTrainedModel,
    smaller: PreTrainedModel,
    old: Mapping[str, Piece],
    new: Mapping[str, Piece],
    axes: list[Axis],
    kept: Mapping[str, Tensor],
    queries: int,
    what: str,
) -> Cut:
    """The cut in the layout in which the smaller model computes what the larger one does with members masked.

    What one module writes is laid out alike in all layers.

    Raises:
        ShrinkError: in none of them.
    """
    fused = [axis for axis in axes if not axis.reads and sum(axis.sections) > 1]
    options: dict[str, list[list[Axis]]] = {}  # module -> for each layout its axes
    for axis in fused:
        options.setdefault(_alike(old[axis.piece].place), []).append(axis.layouts(queries))
    choices = {place: min(map(len, found)) for place, found in options.items()}
    ways = sorted(product(*map(range, choices.values())), key=lambda way: (sum(map(bool, way)), sum(way)))
    best = float("inf")
    for way in ways[:_TRIED]:
        number = dict(zip(choices, way, strict=True))
        laid = {
            (axis.piece, axis.dimension): axis.layouts(queries)[number[_alike(old[axis.piece].place)]] for axis in fused
        }
        tried = [laid.get((axis.piece, axis.dimension), axis) for axis in axes]
        cut = filled(model, old, smaller, new, _slices(old, tried, kept).__getitem__)
        distance, close = apart(model, smaller, masked(model, old, smaller, tried, kept))
        if close:
            return cut
        best = min(best, distance)
    raise ShrinkError(
        f"a smaller model must compute what the larger one does without the same parts; with another {what} the "
        f"logits of {type(model).__name__} are {best:.2g} apart. The family uses the {what} in its arithmetic, or lays "
        "weights out in a way that is not known. Cut its depth or another width."
    )


def _alike(place: str) -> str:
    return _NUMBER.sub("#", place)
