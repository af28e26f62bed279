"""The built-in model: a small GPT-2, built at random."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from prunegpt.builtin import BUILTIN_MODELS
from prunegpt.errors import ModelError, unknown


def build(seed: int, name: str = "builtin:tiny-gpt2") -> GPT2LMHeadModel:
    """An untrained built-in model in evaluation mode; equal seeds give equal weights.

    Args:
        seed: draws the weights; torch's own random state is left as it was.
        name: a built-in model.

    Raises:
        ModelError: no such built-in model.
    """
    if name not in BUILTIN_MODELS:
        raise ModelError(unknown("built-in model", name, BUILTIN_MODELS))
    shape = BUILTIN_MODELS[name]
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()
