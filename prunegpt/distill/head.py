"""The output layer of a language model as data, so that its logits can be computed a few tokens at a time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunegpt.distill.states import States
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


_FACTORS = ("logit_scale", "lm_head_multiplier")  # fields of configs: of Cohere, of Falcon-H1
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma 2, RecurrentGemma, xLSTM
_EXACT, _ROUNDED = (
    1e-3,
    0.05,
)  # relative errors of the logits: of float32, and of types of few digits (they come to 0.01)


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
    factors = [getattr(config, name, None) or 1.0 for name in _FACTORS]
    scale = math.prod(factors) / (getattr(config, "logits_scaling", None) or 1.0)
    caps = [getattr(config, name, None) for name in _CAPS]
    return Head(layer.weight, layer.bias, scale, next(filter(None, caps), None))


def check_head(head: Head, states: States, model: PreTrainedModel) -> None:
    """Makes sure that a model's logits are what its head makes of its last hidden states.

    Logits that are not finite pass: they are the affair of the divergence guard.

    Raises:
        DistillationError: they are not: the model does something to its logits that a Head does not hold.
    """
    theirs = states.logits  # [batch, vocab]
    with torch.no_grad():
        ours = head.logits(states.last[:, -1].to(theirs.dtype)).float()  # [batch, vocab]
        error = (ours - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-6)
    rounded = theirs.dtype != torch.float32 or states.autocast is not None
    if error.isfinite() and error > (_ROUNDED if rounded else _EXACT):
        raise DistillationError(
            f"logits must be the output layer applied to the decoder's last hidden states, but in "
            f"{type(model).__name__} they differ by {100 * float(error):.3g}%. It transforms its logits in a way that "
            f"is not supported here; distil another architecture, or extend distill/head.py."
        )
