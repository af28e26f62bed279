"""From scores to masks: one pattern over many tensors, selected within a tensor, within a row, or over all of them."""

from collections.abc import Mapping

from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.pruning.patterns import Pattern
from prunegpt.pruning.threshold import global_masks
from prunegpt.registry import Scope as Scope


def select_masks(
    scores: Mapping[str, Tensor],
    sparsities: Mapping[str, float],
    *,
    pattern: Pattern,
    scope: Scope = "tensor",
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks of many tensors.

    Args:
        scores: parameter name -> [out, in], higher = more important; for `global`, comparable between tensors.
        sparsities: parameter name -> sparsity of that tensor, as an allocation gives it. For `global` only their mean
            over all units counts.
        pattern: what is pruned as one. `global` compares units of this pattern over all tensors.
        scope: what is compared: the weights of a tensor, of an output row, or of all tensors.
        masks: parameter name -> bool [out, in], True = kept: what is pruned stays pruned. Names may be missing.

    Returns:
        Parameter name -> bool [out, in], True = kept.

    Raises:
        PruningError: a score is not finite, or a sparsity or a shape does not go with the pattern.
    """
    held = masks or {}
    whole = pattern.sparsity  # at it the groups of N:M decide, whatever is compared
    if scope != "global" or (whole is not None and all(sparsities[name] >= whole for name in scores)):
        return {
            name: pattern.select(tensor, sparsities[name], rowwise=scope == "row", mask=held.get(name))
            for name, tensor in scores.items()
        }
    targets = {name: pattern.target(sparsities[name]) for name in scores}
    pooled = {name: pattern.pool(tensor, held.get(name)) for name, tensor in scores.items()}
    units = sum(tensor.numel() for tensor in pooled.values())
    if not units:
        raise PruningError("a selection over all tensors needs at least one weight, got none. Widen the targets.")
    same = len(set(targets.values())) == 1
    mean = sum(targets[name] * tensor.numel() for name, tensor in pooled.items()) / units
    sparsity = next(iter(targets.values())) if same else min(mean, 1.0)
    kept = global_masks(
        pooled, sparsity, masks={name: pattern.pool_mask(mask) for name, mask in held.items() if name in pooled}
    )
    chosen = {name: pattern.spread(units, scores[name].shape) for name, units in kept.items()}
    return {name: mask & held[name] if name in held else mask for name, mask in chosen.items()}
