"""Every family, tiny: each layer can be dropped and the rest is a plain model, or the reason is the one listed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prunegpt.errors import ShrinkError
from prunegpt.lm.models import load_model, save_model
from prunegpt.lm.views import decoder_lists
from prunegpt.shrinking.cut import cut_depth
from tests.support.families import decoders, tiny

_PLACED = "the layers of the smaller model must be the ones that stay"
_CACHE = "a smaller model must generate with a cache as the larger one does"
_NEITHER = "must compute what it did with them passed over"
_CONFIG = "the smaller shape must be one that transformers builds"
# Family -> layer -> why it cannot be dropped. What is not listed can be.
KEPT: dict[str, dict[int, str]] = {
    **{
        key: {1: _CACHE}  # a cache without attention layers
        for key in (
            *("bailing_hybrid", "kimi_linear", "lara_mini", "lfm2_moe", "lfm3", "qwen3_next"),
            *("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "recurrent_gemma"),
        )
    },
    "beam": {0: _PLACED},
    "blt": dict.fromkeys((0, 1, 2), "a config must hold the number of its layers"),
    "diffllama": {0: _PLACED},
    "dory": dict.fromkeys((0, 1), _CONFIG),
    "gemma3n_text": {0: _CONFIG, 1: _CONFIG},
    **{
        key: {1: _PLACED}
        for key in ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "gpt_neox_japanese")
    },
    "hrm_text": dict.fromkeys((0, 1), _PLACED),
    "hy_v4": {0: "must run without the layers that go.*Shared DSA layers"},
    "inkling2_loop_text": {0: _PLACED, 1: _PLACED, 2: _NEITHER},
    **{key: {0: _PLACED} for key in ("inkling2_text", "jamba", "minimax", "modernbert-decoder", "rwkv", "zaya")},
    "olmo_hybrid": dict.fromkeys((0, 1), _CONFIG),
    "reformer": {0: _PLACED, 1: "a layer must hand on hidden states"},
    "xlm": dict.fromkeys((0, 1), _NEITHER),  # what a layer adds is added outside it
    "zamba": {1: _CONFIG, 2: _CONFIG},
    "zamba2": {1: _PLACED, 2: _PLACED},
}
OWN = {"rwkv": {"num_hidden_layers": 3}}  # transformers loads none of one layer
GATE = ("gpt2", "llama", "gemma4_unified_text", "zamba2", "nemotron_h", "mamba2")


@contextmanager
def passed_over(model: nn.Module, layer: int) -> Iterator[None]:
    """The layer's output is replaced by its input."""

    def skip(_module: Any, given: Any, named: Any, output: Any) -> Any:
        states = given[0] if given else named["hidden_states"]
        return states if isinstance(output, Tensor) else (states, *output[1:])

    hooks = [blocks[layer].register_forward_hook(skip, with_kwargs=True) for blocks in decoder_lists(model).values()]
    yield
    for hook in hooks:
        hook.remove()


def written(model: Any, tokens: Tensor, *, use_cache: bool) -> Any:
    """What a model writes behind some tokens; the message of what it raises where it cannot."""
    try:
        return model.generate(tokens, max_new_tokens=4, do_sample=False, use_cache=use_cache, eos_token_id=-1).tolist()
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        return f"{use_cache} {error!r}"


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in GATE else pytest.mark.slow) for name in decoders()]
)
@torch.no_grad()
def test_each_layer_can_be_dropped_or_is_refused_with_the_reason(family: str, tmp_path: Path) -> None:
    whole, generator = tiny(family, **OWN.get(family, {})), torch.Generator().manual_seed(1)
    for weight in whole.parameters():  # norms too: those of one layer are not those of another
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)
    whole.save_pretrained(tmp_path / "whole")
    model = load_model(tmp_path / "whole", dtype="float32", device="cpu")
    depth = len(next(iter(decoder_lists(model).values())))
    tokens = torch.randint(2, 60, (2, 12), generator=torch.Generator().manual_seed(0))  # [windows, length]
    cached = written(model, tokens, use_cache=True) == written(model, tokens, use_cache=False)
    for layer in range(depth) if depth > 1 else ():
        stay = tuple(index for index in range(depth) if index != layer)
        if reason := KEPT.get(family, {}).get(layer):
            with pytest.raises(ShrinkError, match=reason):
                cut_depth(model, stay)
            continue
        folder = tmp_path / f"without-{layer}"
        save_model(cut_depth(model, stay).model, None, folder)
        again, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        with passed_over(model, layer):
            expected = model(input_ids=tokens, use_cache=False).logits
        found = again.eval()(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert written(again, tokens, use_cache=True) == written(again, tokens, use_cache=False) or not cached
        lists = decoder_lists(again)
        assert {len(blocks) for blocks in lists.values()} == {depth - 1}


def test_the_listed_families_are_there() -> None:
    assert set(decoders()) >= {*KEPT, *GATE}
