"""What a model computes below its output layer, without its logits.

The model is called as it is called in plain training (so that autocast, DistributedDataParallel and torch.compile,
which wrap that call, do their work), but for the logits of the last position only; a hook reads what its decoder gave.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunegpt.errors import DistillationError
from prunegpt.lm.views import text_decoder


@dataclass(frozen=True)
class States:
    """One forward pass.

    Attributes:
        last: what the output layer is applied to, [batch, length, width]; where asked for, the model's logits, [batch,
            length, vocab].
        hidden: the embedding's output, then each block's, [batch, length, width] each; empty unless asked for. The last
            one is after the final norm.
        attentions: each block's attention map, [batch, heads, length, length]; empty unless asked for.
        logits: of the last position, [batch, vocab].
        autocast: the dtype of autocast inside the model's call; None without.
    """

    last: Tensor
    hidden: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]
    logits: Tensor
    autocast: torch.dtype | None


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DataParallel, DistributedDataParallel or torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (
            model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else None
        )
        if inner is None:
            break
        model = inner
    if not isinstance(model, PreTrainedModel):
        raise DistillationError(
            f"distillation needs a transformers model, got {type(model).__name__}. Load it with AutoModelForCausalLM."
        )
    return model


def run(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    hidden: bool = False,
    attentions: bool = False,
    whole: bool = False,
) -> States:
    """Runs a causal language model on `inputs` (input_ids [batch, length], attention_mask, …; no labels).

    With `whole` the last states are the logits of all positions. DataParallel is taken off: its replicas are not
    accessible.

    Raises:
        DistillationError: not a transformers model, or attention maps are asked of an implementation without them.
    """
    inner = unwrap(model)
    if attentions:
        check_eager(inner)
    options: dict[str, Any] = {"use_cache": False, "output_hidden_states": hidden, "output_attentions": attentions}
    if not whole and "logits_to_keep" in inspect.signature(type(inner).forward).parameters:
        options["logits_to_keep"] = 1
    found: list[tuple[Any, torch.dtype | None]] = []

    def look(module: nn.Module, arguments: Any, output: Any) -> None:
        kind = output.last_hidden_state.device.type
        found.append((output, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None))

    handle = text_decoder(inner).register_forward_hook(look)
    try:
        outputs = (inner if isinstance(model, nn.DataParallel) else model)(**inputs, **options)
    finally:
        handle.remove()
    if len(found) != 1:
        raise DistillationError(
            f"a forward pass must go through the decoder once; {type(inner).__name__} did so {len(found)} times. Use a "
            "decoder language model, not compiled as a whole."
        )
    decoder, autocast = found[0]
    return States(
        last=outputs.logits if whole else decoder.last_hidden_state,
        hidden=tuple(decoder.hidden_states or ()) if hidden else (),
        attentions=tuple(decoder.attentions or ()) if attentions else (),
        logits=outputs.logits[:, -1],  # [batch, vocab]
        autocast=autocast,
    )


def check_eager(model: PreTrainedModel) -> None:
    """Raises DistillationError where the model's attention does not give its maps."""
    implementation = model.config._attn_implementation
    if implementation != "eager":
        raise DistillationError(
            f"attention maps exist in eager attention only; {type(model).__name__} runs {implementation!r}. Load it "
            "with attn_implementation='eager', or set attention_gain to 0."
        )
