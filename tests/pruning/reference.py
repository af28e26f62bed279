"""Brute force that the pruning tests compare with."""

import torch
from torch import Tensor


def keep_by_sorting(scores: Tensor, zeros: int, mask: Tensor | None = None) -> Tensor:
    """What is pruned already, then the lowest scores by a stable sort, until there are `zeros` of them."""
    flat = scores.flatten().tolist()
    pruned = set() if mask is None else {i for i, kept in enumerate(mask.flatten().tolist()) if not kept}
    for index in sorted(range(len(flat)), key=lambda i: flat[i]):  # sorted() is stable
        if len(pruned) >= zeros:
            break
        pruned.add(index)
    kept = [index not in pruned for index in range(len(flat))]
    return torch.tensor(kept, dtype=torch.bool).reshape(scores.shape)
