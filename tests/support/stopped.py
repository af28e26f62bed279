"""One-shot pruning that is stopped at a given point, and whether two results are the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from prunegpt.pruning.oneshot import OneShotResult


def stopping(after: int) -> Callable[[], bool]:
    """Says no so many times."""
    left = [after]

    def stop() -> bool:
        left[0] -= 1
        return left[0] <= 0

    return stop


def same(one: tuple[Any, OneShotResult], other: tuple[Any, OneShotResult]) -> bool:
    (model, result), (twin, again) = one, other
    weights = zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
    masks = all(torch.equal(mask, again.masks[name]) for name, mask in result.masks.items())
    rows = [[replace(row, seconds=0.0) for row in found.rows] for found in (result, again)]
    return masks and all(torch.equal(a, b) for a, b in weights) and rows[0] == rows[1] and result.notes == again.notes
