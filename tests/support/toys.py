"""A module small enough to look at every weight of, one layer of each kind."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunegpt.lm.views import WeightView
from prunegpt.pruning.mask import Mask


class Toy(nn.Module):
    """A Linear and a Conv1D in a row, 6 -> 8 -> 4, and a head that is not pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = Conv1D(4, 8)
        self.head = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.second(torch.tanh(self.first(inputs))))
        return self.head(hidden)  # type: ignore[no-any-return]

    def views(self) -> dict[str, WeightView]:
        return {
            "first.weight": WeightView("first.weight", self.first.weight, self.first, False, 0),
            "second.weight": WeightView("second.weight", self.second.weight, self.second, True, 1),
        }


def hooked(module: nn.Module) -> bool:
    """Whether it has a forward hook of its own."""
    return bool(module._forward_hooks)


def wrapped(masks: Mapping[str, Tensor]) -> dict[str, Mask]:
    """Masks of bool matrices [out, in]."""
    return {name: Mask(kept) for name, kept in masks.items()}
