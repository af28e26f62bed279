"""The output layer of a language model as data, so that its logits can be computed a few tokens at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """An output layer: logits = cap(scale · (hidden weightᵀ + bias)).

    Attributes:
        weight: [vocab, width]; may be the embedding too.
        bias: [vocab].
        scale: a factor on the logits (Cohere, Granite).
        softcap: c in c · tanh(logits / c) (Gemma 2).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, width] gives [tokens, vocab] in the dtype of `hidden`."""
        bias = self.bias.to(hidden.dtype) if self.bias is not None else None
        logits = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)  # [tokens, vocab]
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap is not None else logits
