"""Importance against brute force, hidden size against a closed form, and what a request may ask."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunegpt.errors import ShrinkError
from prunegpt.lm.models import save_model
from prunegpt.pruning.mask import Mask
from prunegpt.shrinking.width import activation_importance, cut_width, highest, taylor_importance
from prunegpt.spec.shapes import shrunk_config
from tests.support.families import tiny

WINDOWS = torch.randint(2, 60, (5, 12), generator=torch.Generator().manual_seed(0))  # [windows, length]
SCORES = {"activation": activation_importance, "taylor": taylor_importance}


def larger(family: str, **own: Any) -> Any:
    """A tiny model whose layers matter."""
    model = tiny(family, **own)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data *= 6
    return model


def cut(model: Any, what: str, size: float, importance: str = "activation", **own: Any) -> Any:
    config = shrunk_config(model.config.to_dict(), **{what: size, **own})
    return cut_width(model, config, (what,), partial(SCORES[importance], windows=WINDOWS))


def inputs_of(model: Any, name: str) -> Tensor:
    """What a layer is given over all windows: float64 [tokens, in]."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for window in WINDOWS:  # one by one: the result does not depend on how they are batched
        model(input_ids=window[None])
    hook.remove()
    return torch.cat([part.flatten(0, -2) for part in seen]).double()


@torch.no_grad()
def test_neurons_and_heads_and_channels_are_ranked_by_their_activations() -> None:
    model = larger("llama")
    neurons, _ = cut(model, "ffn", 0.75)
    heads, _ = cut(model, "heads", 0.5)
    hidden, _ = cut(model, "hidden", 0.75)
    channels = torch.zeros(32, dtype=torch.float64)
    for layer in range(2):
        place = f"model.layers.{layer}"
        given = inputs_of(model, f"{place}.mlp.down_proj")  # [tokens, neurons]
        best = highest(given.norm(dim=0), 48)
        assert neurons.slices[f"{place}.mlp.down_proj.weight"].index == (None, tuple(best.tolist()))
        assert neurons.slices[f"{place}.mlp.up_proj.weight"].index == (tuple(best.tolist()), None)
        given = inputs_of(model, f"{place}.self_attn.o_proj")  # [tokens, heads · head size]
        group = given.square().sum(dim=0).view(2, 16).sum(dim=1).argmax().item()  # two heads of 8 each
        assert heads.slices[f"{place}.self_attn.k_proj.weight"].index[0] == tuple(range(group * 8, group * 8 + 8))
        assert heads.slices[f"{place}.self_attn.q_proj.weight"].index[0] == tuple(range(group * 16, group * 16 + 16))
        for reader in ("self_attn.q_proj", "mlp.up_proj"):
            channels += inputs_of(model, f"{place}.{reader}").norm(dim=0)
    channels += inputs_of(model, "lm_head").norm(dim=0)
    assert hidden.slices["model.embed_tokens.weight"].index == (None, tuple(highest(channels, 24).tolist()))


def test_neurons_are_ranked_by_the_gradient_of_the_loss() -> None:
    model = larger("llama")
    found, rows = cut(model, "ffn", 0.75, "taylor")
    losses = [model(input_ids=window[None], labels=window[None]).loss for window in WINDOWS]
    torch.stack(losses).mean().backward()
    for layer, row in zip(range(2), rows, strict=True):
        mlp = model.model.layers[layer].mlp
        scores = sum(
            (part.weight * part.weight.grad).abs().double().sum(dim=1) for part in (mlp.gate_proj, mlp.up_proj)
        )
        scores = scores + (mlp.down_proj.weight * mlp.down_proj.weight.grad).abs().double().sum(dim=0)  # [neurons]
        best = highest(scores, 48)
        assert found.slices[f"model.layers.{layer}.mlp.down_proj.weight"].index == (None, tuple(best.tolist()))
        assert row["importance_kept"] == pytest.approx((scores[best].sum() / scores.sum()).item(), rel=1e-5)


@torch.no_grad()
def test_a_smaller_hidden_size_is_the_whole_model_with_norms_of_the_other_channels() -> None:
    """An RMS norm over some channels is that over all, the others 0, times the root of their share."""
    model = larger("llama")
    found, _ = cut(model, "hidden", 0.75)
    stays = [*found.slices["model.embed_tokens.weight"].index[1]]
    gone = [channel for channel in range(32) if channel not in stays]
    expected = found.model(input_ids=WINDOWS).logits
    model.model.embed_tokens.weight[:, gone] = 0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[gone] = 0
        layer.mlp.down_proj.weight[gone] = 0
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.weight *= (24 / 32) ** 0.5
            module.variance_epsilon *= 24 / 32
    torch.testing.assert_close(model(input_ids=WINDOWS).logits, expected, rtol=1e-4, atol=1e-4)
    assert found.model.config.head_dim == 8


@torch.no_grad()
def test_the_folder_is_read_without_prunegpt_and_generates(tmp_path: Path) -> None:
    model = larger("llama", tie_word_embeddings=True)
    found, _ = cut(cut(model, "heads", 1)[0].model, "ffn", 0.5)
    found, _ = cut(found.model, "hidden", 24)
    save_model(found.model, None, tmp_path / "cut")
    code = (
        "import sys; sys.modules['prunegpt'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
        "tokens = torch.tensor([[3, 4, 5]])\n"
        "told = {'max_new_tokens': 9, 'do_sample': False}\n"
        "texts = [model.generate(tokens, use_cache=cached, **told).tolist() for cached in (True, False)]\n"
        "assert texts[0] == texts[1]\n"
        "assert model.lm_head.weight is model.model.embed_tokens.weight\n"
        "torch.save(model(tokens).logits, sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "cut", tmp_path / "logits.pt"], check=True)
    expected = found.model(input_ids=torch.tensor([[3, 4, 5]])).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)


@torch.no_grad()
def test_masks_are_cut_as_their_weights(tmp_path: Path) -> None:
    model = larger("gpt2")  # stores [in, out]
    name = "transformer.h.0.mlp.c_fc.weight"
    weight = model.get_parameter(name)
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    weight *= kept
    found, _ = cut(model, "ffn", 0.5)
    mask = Mask(found.slices[name].of(kept.t()))  # [out, in]
    assert mask.shape == (64, 32)
    assert mask.alive(found.model.get_parameter(name).t()) == 0
    again = AutoModelForCausalLM.from_config(found.model.config)
    assert again.config.n_inner == 64


@pytest.mark.parametrize(
    ("family", "asked", "reason"),
    [
        ("llama", {"heads": 3}, "heads must be above 0 and at most the 2 that there are, got 3"),
        ("qwen2_moe", {"ffn": 12}, r"ffn must be a share where feed-forward sizes differ; .*\[16, 64\], got 12"),
        ("gemma", {"heads": 0.5, "num_key_value_heads": 1}, "all heads of this model share one"),
        ("llama", {"experts": 0.5}, "only a mixture of experts has experts"),
        ("mixtral", {"experts": 1}, "at least as many experts must stay as work on a token, 2; 1 of 4"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(family: str, asked: dict[str, Any], reason: str) -> None:
    config = tiny(family).config.to_dict() | {name: value for name, value in asked.items() if name.startswith("num")}
    with pytest.raises(ShrinkError, match=reason):
        shrunk_config(config, **{name: value for name, value in asked.items() if not name.startswith("num")})


def test_shares_are_rounded_to_a_multiple_and_numbers_are_taken_as_they_are() -> None:
    config = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    found = shrunk_config(config, ffn=0.7, hidden=0.75, multiple_of=64)
    assert (found["intermediate_size"], found["hidden_size"], found["head_dim"]) == (1088, 432, 64)
    assert shrunk_config(config, ffn=1000, multiple_of=64)["intermediate_size"] == 1000
    assert shrunk_config({**config, "num_key_value_heads": 3}, heads=2)["num_attention_heads"] == 6
    assert shrunk_config({"n_embd": 32, "n_inner": None}, ffn=0.5)["n_inner"] == 64
