"""Sparsities of decoder layers that differ as requested and keep to the budget."""

from collections.abc import Mapping

from prunegpt.pruning.threshold import zeros_for

_HALVINGS = 100  # more than the bits of a float64: the shift is found to the last one


def block_weights(sizes: Mapping[str, int], blocks: Mapping[str, int | None]) -> dict[int, int]:
    """Decoder layer -> its number of weights, of the tensors that belong to one.

    Args:
        sizes: parameter name -> number of weights.
        blocks: parameter name -> layer index, or None.
    """
    weights: dict[int, int] = {}
    for name, size in sizes.items():
        if (block := blocks[name]) is not None:
            weights[block] = weights.get(block, 0) + size
    return weights


def scaled(figures: Mapping[int, float], span: float) -> dict[int, float]:
    """Figures of decoder layers, moved and stretched so that they go from 0 to `span`; all 0 where they are equal."""
    lowest, highest = min(figures.values(), default=0.0), max(figures.values(), default=0.0)
    return {block: span * (figure - lowest) / ((highest - lowest) or 1.0) for block, figure in figures.items()}


def allotted(
    sizes: Mapping[str, int],
    sparsity: float,
    asked: Mapping[int, float],
    *,
    blocks: Mapping[str, int | None],
    limit: float = 1.0,
) -> dict[str, float]:
    """The sparsity of every tensor: as asked for over decoder layers, and `sparsity` outside them.

    Args:
        sizes: parameter name -> number of weights.
        sparsity: of all weights together.
        asked: layer index -> sparsity but for a common shift.
        blocks: parameter name -> layer index, or None.
        limit: how far a layer may be from `sparsity`.
    """
    share = _balanced(asked, block_weights(sizes, blocks), sparsity, limit)
    return {name: sparsity if (block := blocks[name]) is None else share[block] for name in sizes}


def _balanced(
    asked: Mapping[int, float], weights: Mapping[int, int], sparsity: float, limit: float
) -> Mapping[int, float]:
    """Sparsities that differ as requested, shifted together so that the mean over all weights is the sparsity.

    They are clamped to [sparsity - limit, sparsity + limit] and to [0, 1]; the shift is the one that makes the mean
    right after clamping.

    Args:
        asked: block -> sparsity but for a common shift.
        weights: block -> number of weights.
        sparsity: of all weights together.
        limit: how far a block may be from it.

    Raises:
        PruningError: the sparsity is not between 0 and 1.
    """
    zeros_for(0, sparsity)
    if len(set(asked.values())) <= 1:
        return dict.fromkeys(asked, sparsity)
    floor, ceiling = max(0.0, sparsity - limit), min(1.0, sparsity + limit)
    total = sum(weights.values())

    def shifted(shift: float) -> dict[int, float]:
        return {block: min(max(value + shift, floor), ceiling) for block, value in asked.items()}

    low, high = floor - max(asked.values()), ceiling - min(asked.values())  # all at the floor; all at the ceiling
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        mean = sum(weights[block] * value for block, value in shifted(middle).items()) / total
        low, high = (middle, high) if mean < sparsity else (low, middle)
    return shifted(high)
