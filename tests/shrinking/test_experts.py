"""Experts: scores against brute force, and the smaller mixture against the whole one with experts disabled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MixtralForCausalLM

from prunegpt.errors import ShrinkError
from prunegpt.lm.models import load_model, save_model
from prunegpt.registry import EXPERT_CHOICES
from prunegpt.shrinking.experts import cut_experts, expert_use, frequency, reap
from prunegpt.spec.shapes import shrunk_config, text_part
from prunegpt.spec.widths import experts_of
from tests.support.families import decoders, tiny

WINDOWS = torch.randint(2, 60, (3, 12), generator=torch.Generator().manual_seed(0))  # [windows, length]
GATE = ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4_text")
_CALLED = "experts must be called with hidden states, the experts of each token and their weights"
_OTHERS = "nothing but experts and the rows of routers must change"
REFUSED = {
    **dict.fromkeys(("dbrx", "jetmoe", "llama4", "llama4_text"), _CALLED),
    "deepseek_v4": "tid2eid is a table",
    **dict.fromkeys(("doge", "flint"), "none goes"),
    **dict.fromkeys(("inkling_text", "longcat_flash", "zaya"), _OTHERS),
}


def larger(family: str, **own: int) -> Any:
    """A tiny mixture whose experts and routers matter."""
    model = tiny(family, **own)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data *= 6
    return model


def half(model: Any, choice: Any = reap) -> Any:
    return cut_experts(model, shrunk_config(model.config.to_dict(), experts=0.5), WINDOWS, choice=choice)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@torch.no_grad()
def test_scores_are_those_of_the_formula(family: str) -> None:
    model = larger(family)
    seen: list[Tensor] = []
    block = model.model.layers[1].mlp
    hook = block.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, -2)))
    model(input_ids=WINDOWS)
    hook.remove()
    states, experts = seen[0].double(), block.experts  # [tokens, hidden]
    chances = (states @ block.gate.weight.double().t()).softmax(dim=-1)  # [tokens, experts]
    weights, chosen = chances.topk(2, dim=-1)
    if family == "mixtral" or model.config.norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    reap, tokens = [], []
    for expert in range(4):
        gate, up = (states @ experts.gate_up_proj[expert].double().t()).chunk(2, dim=-1)
        output = (nn.functional.silu(gate) * up) @ experts.down_proj[expert].double().t()  # [tokens, hidden]
        routed = chosen == expert  # [tokens, 2]
        products = (weights * routed).sum(dim=-1) * output.norm(dim=-1)  # [tokens], 0 where it was not chosen
        tokens.append(int(routed.sum()))
        reap.append(products.sum().item() / max(tokens[-1], 1))
    found = expert_use(model, ["model.layers.1.mlp.experts"], 4, WINDOWS)["model.layers.1.mlp.experts"]
    assert found.reap.tolist() == pytest.approx(reap, rel=1e-4)
    assert found.tokens.tolist() == tokens
    _, rows = half(model)
    assert rows[1]["experts"] == sorted(sorted(range(4), key=lambda expert: -reap[expert])[:2])
    assert half(model, frequency)[1][1]["experts"] == sorted(sorted(range(4), key=lambda one: -tokens[one])[:2])


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in GATE else pytest.mark.slow) for name in decoders()]
)
@torch.no_grad()
def test_half_the_experts_of_every_mixture(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest computes what the whole did with minus infinity for the router logits of those that went."""
    model = larger(family)
    if not experts_of(text_part(model.config.to_dict())):
        with pytest.raises(ShrinkError, match="only a mixture of experts has experts to cut"):
            half(model)
        return
    model.save_pretrained(tmp_path / "whole")
    model = load_model(tmp_path / "whole", dtype="float32", device="cpu")
    if reason := REFUSED.get(family):
        with pytest.raises(ShrinkError, match=reason):
            half(model)
        return
    cut, rows = half(model)
    save_model(cut.model, None, tmp_path / "cut")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "cut").eval()
    found = again(input_ids=WINDOWS, use_cache=False).logits
    gone: dict[int, list[int]] = {}
    names = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, part in cut.slices.items():
        stays = [index for index in part.index if index is not None]
        if not stays:
            continue
        assert any(list(stays[0]) == row["experts"] for row in rows)
        others = [expert for expert in range(4) if expert not in stays[0]]
        if names[name].squeeze().dim() == 2:
            gone[names[name].data_ptr()] = others
        else:
            names[name][..., others] = float("-inf")
    assert gone
    linear = nn.functional.linear

    def disabled(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = linear(given, weight, bias)
        output[..., gone.get(weight.data_ptr(), [])] = float("-inf")
        return output

    monkeypatch.setattr(nn.functional, "linear", disabled)
    expected = model(input_ids=WINDOWS, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_equally_many_experts_of_each_routing_group_stay() -> None:
    model = larger("deepseek_v3", n_routed_experts=8, num_local_experts=8, n_group=2)
    _, rows = half(model)
    assert [[expert // 4 for expert in row["experts"]] for row in rows] == [[0, 0, 1, 1]]
    with pytest.raises(ShrinkError, match="must divide into the 2 groups that tokens are routed in; 3 do not"):
        shrunk_config(model.config.to_dict(), experts=3)


class Unfused(MixtralForCausalLM):
    """A mixture as code that comes with a model has it: a module for each expert."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(config.num_local_experts))


@pytest.mark.parametrize("choice", EXPERT_CHOICES.builtin_names())
def test_experts_that_are_modules_of_their_own_are_refused(choice: str) -> None:
    with pytest.raises(ShrinkError, match=r"in Unfused model\.layers\.0\.mlp\.experts\.2 is a module of its own"):
        half(Unfused(tiny("mixtral").config), EXPERT_CHOICES.load(choice))


@pytest.mark.slow
@pytest.mark.parametrize("family", decoders())
def test_no_family_of_transformers_has_such_experts(family: str) -> None:
    lists = [name for name, module in tiny(family).named_modules() if isinstance(module, nn.ModuleList)]
    assert not [name for name in lists if "expert" in name.rpartition(".")[2]]


def test_the_listed_families_are_mixtures() -> None:
    assert set(decoders()) >= {*GATE, *REFUSED}
