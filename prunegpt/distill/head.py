"""The output layer of a language model as data, so that its logits can be computed a few tokens at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunegpt.distill.states import run
from prunegpt.errors import DistillationError
from prunegpt.pruning.statistics.collect import evaluating


@dataclass(frozen=True)
class Head:
    """An output layer: logits = cap(scale · (hidden weightᵀ + bias)).

    Attributes:
        weight: [vocab, width]; may be the embedding too. None: the states it is given are the model's own logits.
        bias: [vocab].
        scale: a factor on the logits (Cohere, Granite).
        softcap: c in c · tanh(logits / c) (Gemma 2).
    """

    weight: Tensor | None
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, width] gives [tokens, vocab] in the dtype of `hidden`."""
        if self.weight is None:
            return hidden
        bias = self.bias.to(hidden.dtype) if self.bias is not None else None
        logits = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)  # [tokens, vocab]
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap is not None else logits

    def rows(self, states: Tensor) -> int:
        """The size of the vocabulary, given what it is applied to."""
        return (states if self.weight is None else self.weight.t()).shape[-1]

    def cast(self, dtype: torch.dtype) -> "Head":
        """The same with its products in another dtype; the matrix is copied for it."""
        return self if self.weight is None else replace(self, weight=self.weight.to(dtype))

    def cut(self, vocabulary: int) -> "Head":
        """The same for the first tokens; of a model's own logits all stay."""
        if self.weight is None:
            return self
        bias = self.bias[:vocabulary] if self.bias is not None else None
        return replace(self, weight=self.weight[:vocabulary], bias=bias)

    def apply(self, states: Tensor) -> Tensor:
        """The logits of states of any dtype, in that of the weight."""
        return self.logits(states if self.weight is None else states.to(self.weight.dtype))


OWN_LOGITS = Head(None)
_FACTORS = ("logit_scale", "lm_head_multiplier")  # fields of configs: of Cohere, of Falcon-H1
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma 2, RecurrentGemma, xLSTM
_PROBE = 16  # tokens on which the output layer is tried
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
            f"distillation needs a linear output layer; {type(model).__name__} has "
            f"{type(layer).__name__ if layer is not None else 'none'}. Load it with AutoModelForCausalLM."
        )
    config = model.config
    factors = [getattr(config, name, None) or 1.0 for name in _FACTORS]
    scale = math.prod(factors) / (getattr(config, "logits_scaling", None) or 1.0)
    caps = [getattr(config, name, None) for name in _CAPS]
    return Head(layer.weight, layer.bias, scale, next(filter(None, caps), None))


def usable_head(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Head:
    """The output layer, where the model's logits are what it makes of the last hidden states; else OWN_LOGITS.

    Tried on the first tokens of a batch in evaluation mode, which draws no random number. Logits that are not finite
    are the affair of the divergence guard.

    Args:
        model: a causal language model.
        inputs: input_ids [batch, length], attention_mask, ….

    Raises:
        DistillationError: the model has no linear output layer.
    """
    first = {name: value[:1, :_PROBE] for name, value in inputs.items() if value.dim() > 1}
    with torch.no_grad(), evaluating(model):
        states = run(model, first)
        head = head_of(model)  # which FSDP2 has whole after the model's call
        theirs = states.logits  # [1, vocab]
        ours = head.logits(states.last[:, -1].to(theirs.dtype)).float()  # [1, vocab]
        error = (ours - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-6)
    rounded = theirs.dtype != torch.float32 or states.autocast is not None
    return OWN_LOGITS if error.isfinite() and error > (_ROUNDED if rounded else _EXACT) else head


def own_logits_note(model: PreTrainedModel) -> str:
    """What a record says where OWN_LOGITS are used."""
    return (
        f"{type(model).__name__} transforms its logits beyond a linear output layer: its own logits are compared, "
        f"of all tokens at once"
    )
