"""Tiny models of more families, and what their layers are really given in a plain forward pass."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from prunegpt.lm.views import WeightView


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(0, 128, (5, 12), generator=torch.Generator().manual_seed(0))  # [windows, length]


@pytest.fixture
def make_model(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """`make_model(family)`: a random model of two or three blocks, whose blocks do different things."""

    def make(family: str) -> Any:
        model = (
            request.getfixturevalue(f"tiny_{family}") if family in ("gpt2", "llama", "opt") else _further(family).eval()
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return model

    return make


def _further(family: str) -> Any:
    import transformers as hf

    common = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if family == "gemma3":  # sliding and full attention take turns, with masks and rotations of their own
        config = hf.Gemma3TextConfig(
            **common | {"num_hidden_layers": 3},
            **ends,
            intermediate_size=48,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            max_position_embeddings=64,
        )
        return hf.Gemma3ForCausalLM(config)
    if family == "neox":
        return hf.GPTNeoXForCausalLM(
            hf.GPTNeoXConfig(**common, **ends, intermediate_size=48, max_position_embeddings=64)
        )
    return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=4, **ends))


@pytest.fixture
def inputs_of() -> Callable[..., dict[str, Tensor]]:
    """`inputs_of(model, views, windows)`: layer name -> [tokens, in], from one plain pass of the whole model."""

    def record(model: Any, views: Mapping[str, WeightView], windows: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[..., None]:
            def keep(module: Any, args: tuple[Tensor, ...]) -> None:
                found[name] = args[0].detach().reshape(-1, args[0].shape[-1]).clone()

            return keep

        handles = [view.module.register_forward_pre_hook(hook(name)) for name, view in views.items()]
        with torch.no_grad():
            model(input_ids=windows)
        for handle in handles:
            handle.remove()
        return found

    return record
