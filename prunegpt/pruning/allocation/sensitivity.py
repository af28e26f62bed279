"""Sensitivity: the budget goes where measured curves say that it costs least."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil

from prunegpt.errors import PruningError
from prunegpt.pruning.threshold import zeros_for

_ROUNDING = 1e-6  # what a whole number of weights may exceed itself by


def sensitivity(
    sizes: Mapping[str, int],
    sparsity: float,
    *,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    blocks: Mapping[str, int | None] | None = None,
) -> dict[str, float]:
    """The sparsities whose summed loss increase is least, for exactly round(total · sparsity) zeros.

    Costs are taken to add up over layers. Each curve is replaced by its lower convex hull from (0, 0), an increase
    below 0 counting as 0, and is linear between points: a dip by noise is bridged, and never makes pruning more look
    cheaper. For such curves, spending the budget on the segments with the lowest cost a weight first is optimal (the
    Lagrangian solution: all layers end at one slope). At most one layer ends between two points of its hull, to meet
    the total.

    Args:
        sizes: layer -> number of weights. A layer is whatever the curves are of: a tensor, or all tensors of a block.
        sparsity: of all layers together.
        curves: layer -> (sparsity, increase of the loss in nats per token when only this layer is pruned), in any
            order. No layer is pruned beyond its last point.
        blocks: tensor -> layer index, where `sizes` is of tensors and the curves are of blocks: the tensors of a block
            are then a layer, and pruned alike.

    Raises:
        PruningError: a layer has no curve, a curve is no curve, or the last points together do not reach the sparsity.
    """
    if blocks is not None:
        of_blocks: dict[str, int] = {}
        for name, size in sizes.items():
            of_blocks[str(blocks[name])] = of_blocks.get(str(blocks[name]), 0) + size
        by_block = sensitivity(of_blocks, sparsity, curves=curves)
        return {name: by_block[str(blocks[name])] for name in sizes}
    budget = zeros_for(sum(sizes.values()), sparsity)
    segments: list[tuple[float, int, int, str, int]] = []  # cost a weight, order of layer and segment, layer, zeros
    for position, (layer, size) in enumerate(sizes.items()):
        hull = _hull(layer, curves.get(layer, ()))
        for index, ((left, low), (right, high)) in enumerate(pairwise(hull)):
            upto = ceil(size * right - _ROUNDING) if right == hull[-1][0] else zeros_for(size, right)
            zeros = upto - zeros_for(size, left)
            cost = (high - low) / ((right - left) * size) if size else 0.0
            segments.append((cost, position, index, layer, zeros))
    spent = dict.fromkeys(sizes, 0)
    for _, _, _, layer, zeros in sorted(segments):
        take = min(zeros, budget)
        spent[layer] += take
        budget -= take
    if budget:
        reach = sum(spent.values()) / sum(sizes.values())
        raise PruningError(
            f"sensitivity prunes no layer beyond the last point of its curve, which reaches a sparsity of {reach:g} "
            f"over all; {sparsity:g} was asked for. Measure the curves at higher sparsities."
        )
    return {layer: spent[layer] / size if size else 0.0 for layer, size in sizes.items()}


def _hull(layer: str, curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull of (0, 0) and the points of a curve, by sparsity (Andrew's monotone chain)."""
    if not curve:
        raise PruningError(f"sensitivity needs a curve for every layer; {layer} has none. Measure it, or leave it out.")
    points: dict[float, float] = {0.0: 0.0}
    for level, increase in sorted(curve):
        zeros_for(0, level)
        if not abs(increase) < float("inf"):
            raise PruningError(
                f"an increase of the loss must be finite; the curve of {layer} has {increase} at {level:g}. Leave that "
                "point out."
            )
        if level > 0.0:
            points[level] = min(points.get(level, float("inf")), max(increase, 0.0))
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points.items()):
        while len(hull) >= 2 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return hull
