"""The output layer of a language model as data, so that its logits can be computed a few tokens at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunegpt.errors import DistillationError


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


def head_of(model: PreTrainedModel) -> Head:
    """The output layer of a causal language model, sharing its parameters.

    Raises:
        DistillationError: the model has no linear output layer.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise DistillationError(
            f"distillation needs a linear output layer, but {type(model).__name__} has "
            f"{type(layer).__name__ if layer is not None else 'none'}. Load it with AutoModelForCausalLM."
        )
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return Head(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))


def check_head(head: Head, hidden: Tensor, logits: Tensor, model: PreTrainedModel) -> None:
    """Makes sure that a model's logits [batch, vocab] are what its head makes of the hidden states [batch, width].

    Logits that are not finite pass: they are the affair of the divergence guard.

    Raises:
        DistillationError: they are not: the model does something to its logits that a Head does not hold.
    """
    with torch.no_grad():
        ours = head.logits(hidden.to(logits.dtype)).float()  # [batch, vocab]
        theirs = logits.float()  # [batch, vocab]
        error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
    if error.isfinite() and error > 0.05:  # bfloat16 comes to 0.01
        raise DistillationError(
            f"logits must be the output layer applied to the decoder's last hidden states, but in "
            f"{type(model).__name__} they differ by {100 * float(error):.3g}%. It transforms its logits in a way that "
            f"is not supported here; distil another architecture, or extend distill/head.py."
        )
