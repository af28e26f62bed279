"""A layer for criteria, with all that they may need."""

from typing import Any

import torch
from torch import Generator, Tensor

from prunegpt.pruning.criteria.base import Criterion

OUT, IN = 12, 16
SHAPED = ("gradient", "movement", "squared_gradient", "regional_gradient")  # as the weight


def weight_of(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(OUT, IN, generator=Generator().manual_seed(0)).to(dtype)  # [out, in]


def needed_by(criterion: Criterion, transpose: bool = False) -> dict[str, Any]:
    """Statistics for a layer, those of the weight's shape in the layout of a Conv1D view where asked."""
    generator = Generator().manual_seed(1)
    drawn = {need: torch.randn(OUT, IN, generator=generator) for need in SHAPED}
    drawn["squared_gradient"] = drawn["squared_gradient"].square()
    drawn["regional_gradient"] = drawn["regional_gradient"].abs()
    if transpose:
        drawn = {need: value.t().contiguous().t() for need, value in drawn.items()}
    given = {**drawn, "input_norm": torch.rand(IN, generator=generator), "generator": Generator().manual_seed(2)}
    return {need: given[need] for need in criterion.needs}
