"""Every family, tiny: a width is cut and the rest is a plain model, or the reason is the one listed.

What the smaller model must compute is computed here from the whole one: nothing reads the neurons, heads or channels
that went, and norms go over those that stay.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prunegpt.errors import PruneGPTError
from prunegpt.lm.models import load_model, save_model
from prunegpt.lm.views import all_matrices
from prunegpt.shrinking.cut import Slice
from prunegpt.shrinking.narrow import steps
from prunegpt.shrinking.width import WIDTHS, activation_importance, cut_width
from prunegpt.spec.shapes import shrunk_config
from tests.support.families import decoders, tiny

SIZES = {"ffn": 0.75, "heads": 0.5, "hidden": 0.75}
GATE = {
    "ffn": ("gpt2", "phi3", "gpt_oss", "qwen3_moe", "bitnet"),
    "heads": ("phi3", "gpt_oss", "olmo2", "deepseek_v3", "gpt2"),
    "hidden": ("llama", "olmo", "qwen3_moe", "gemma2"),
}
_UNWRITTEN = "must be (written|counted) in the config"
_UNHEARD = "weights must follow the .* none of"
_BOTH = "a weight must follow the .* on one side"
_WIDER = "weights that follow the hidden size must be as wide"
_OWNER = "must belong to a layer of that many"
_BUILT = "the smaller shape must be one that transformers builds"
_RUNS = "the larger and the smaller model must run on tokens"
_APART = "a smaller model must compute what the larger one does"
# What -> why -> the families that cannot express it. All others can.
_REASONS: dict[str, dict[str, str]] = {
    "ffn": {
        _UNWRITTEN: "bloom blt gpt_neox_japanese mamba2 mpt openai-gpt xlm xlstm",
        _UNHEARD: "lfm2",  # has a rule of its own for the size
        _OWNER: "jetmoe longcat_flash",
        _APART: "gemma3n_text",  # keeps the neurons above a quantile of all
    },
    "heads": {
        _UNWRITTEN: "blt falcon_mamba mamba rwkv xglm",
        _UNHEARD: """bamba bart bigbird_pegasus biogpt blenderbot blenderbot-small bloom codegen ctrl dbrx git gpt2
            gpt_neo gpt_neox gpt_neox_japanese gptj granitemoehybrid jamba marian mbart modernbert-decoder mpt mvp
            nemotron_h openai-gpt opt pegasus plbart qwen4_exp qwen4_exp_text stablelm trocr whisper xlm""",
        _BOTH: "doge recurrent_gemma",
        _OWNER: "deepseek_v4 fuyu gpt_bigcode helium jetmoe laguna persimmon xlstm",
        _BUILT: "diffllama falcon mamba2",
        _RUNS: "bitnet olmoe",
        _APART: "zaya",
    },
    "hidden": {
        _UNWRITTEN: "blt xlm",
        _BOTH: """bart bigbird_pegasus biogpt blenderbot blenderbot-small bloom codegen ctrl dbrx fuyu gemma3n_text git
            got_ocr2 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gptj helium jamba lfm2_moe lfm3 marian mbart
            modernbert-decoder moss_transcribe_diarize mpt mvp openai-gpt opt pegasus persimmon phi4_multimodal plbart
            rwkv stablelm trocr whisper xglm xlstm zamba zamba2""",
        _WIDER: "deepseek_v4 hy_v4 inkling2_loop_text olmoe qwen4_exp qwen4_exp_text",
        _BUILT: "bamba falcon granitemoehybrid mamba2 reformer",
        _RUNS: "bitnet",
        _APART: """dory dots3_note dots3_note_text gemma gemma2 gemma3 gemma3_text gemma4 gemma4_text gemma4_unified
            gemma4_unified_text longcat_flash minicpm3 recurrent_gemma vaultgemma""",  # scale by the root of the size
    },
}
REFUSED = {
    what: {family: reason for reason, names in reasons.items() for family in names.split()}
    for what, reasons in _REASONS.items()
}
APART_NEVER = sorted(REFUSED["heads"].keys() & REFUSED["hidden"].keys())
GATE_BOTH = ("gpt2", "gpt_neox")
_SEPARATE, _CROSS = "one after the other", "no token came to .*encoder_attn"
REFUSED_TOGETHER = {
    family: reason
    for reason, names in {
        _SEPARATE: "bitnet deepseek_v4 fuyu gpt_bigcode helium olmoe persimmon recurrent_gemma xlm xlstm",
        _CROSS: "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart trocr whisper",
        _UNWRITTEN: "blt rwkv xglm",
        _WIDER: "jamba mamba2 qwen4_exp qwen4_exp_text",
        _BUILT: "bamba falcon granitemoehybrid",
        _APART: "biogpt bloom codegen ctrl git modernbert-decoder mpt",  # use the number of heads, or the size
    }.items()
    for family in names.split()
}
LEAKS = ("prophetnet", "roc_bert")  # see the tokens they are to predict, once their weights are not tiny
CASES = [
    pytest.param(what, family, marks=() if family in GATE[what] else pytest.mark.slow)
    for what in SIZES
    for family in decoders()
    if family not in LEAKS
]


@contextmanager
def without(model: nn.Module, smaller: nn.Module, slices: Mapping[str, Slice]) -> Iterator[None]:
    """The model without what the slices leave out."""
    hooks = []
    before = {}
    for name, view in all_matrices(model).items():
        index = slices[name].index
        if not isinstance(view.module, nn.Embedding) and index and index[1] is not None:
            before[name] = view.matrix.clone()
            gone = [column for column in range(view.matrix.shape[1]) if column not in set(index[1])]
            view.matrix[:, gone] = 0
    indices = {id(weight): slices[name].index for name, weight in model.named_parameters() if name in slices}
    words = indices[id(model.get_input_embeddings().weight)]  # type: ignore[operator]
    channels = words[1] if words else ()
    for name, module in model.named_modules():
        if "Norm" not in type(module).__name__ or [*module.children()]:
            continue
        own = [indices[id(weight)] for weight in module.parameters()]  # by identity: layers may share them
        stays = own[0][0] if own and own[0] else () if own else channels
        if stays:
            hooks.append(module.register_forward_hook(over(smaller.get_submodule(name), [*stays]), with_kwargs=True))
    yield
    for hook in hooks:
        hook.remove()
    for name, matrix in before.items():
        all_matrices(model)[name].matrix.copy_(matrix)


def over(norm: nn.Module, stays: list[int]) -> Any:
    """A hook that puts the smaller model's norm of what stays in the place of the whole norm."""

    def hook(_module: nn.Module, given: Any, named: Any, output: Tensor) -> Tensor:
        states, *more = *given, *named.values()
        if states.shape[-1] <= max(stays):
            return output
        found = torch.zeros_like(output)
        found[..., stays] = norm(states[..., stays], *more)
        return found

    return hook


def model_of(family: str, folder: Path) -> Any:
    """A tiny model whose layers matter: weights as they are drawn hardly change the logits."""
    model = tiny(family)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data *= 6
    model.save_pretrained(folder)
    return load_model(folder, dtype="float32", device="cpu")


@pytest.mark.parametrize(("what", "family"), CASES)
@torch.no_grad()
def test_a_width_can_be_cut_or_is_refused_with_the_reason(what: str, family: str, tmp_path: Path) -> None:
    check({what: SIZES[what]}, family, REFUSED[what].get(family), tmp_path)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in GATE_BOTH else pytest.mark.slow) for name in APART_NEVER]
)
@torch.no_grad()
def test_heads_and_hidden_are_cut_together_where_neither_can_be_alone(family: str, tmp_path: Path) -> None:
    """Or the reason is the one listed; the size of a head stays."""
    reason = REFUSED_TOGETHER.get(family)
    check({"heads": 0.5, "hidden": 0.5}, family, REFUSED["heads"][family] if reason == _SEPARATE else reason, tmp_path)


def check(sizes: Mapping[str, float], family: str, reason: str | None, tmp_path: Path) -> None:
    model = model_of(family, tmp_path / "whole")
    windows = torch.randint(2, 60, (2, 12), generator=torch.Generator().manual_seed(0))  # [windows, length]

    def cut() -> Any:
        step, *_ = steps(model, sizes, 1)
        config = shrunk_config(model.config.to_dict(), **step)  # type: ignore[arg-type]
        return cut_width(model, config, tuple(step), partial(activation_importance, windows=windows))[0]

    if reason:
        with pytest.raises(PruneGPTError, match=reason):
            cut()
        return
    found = cut()
    save_model(found.model, None, tmp_path / "cut")
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert not report["missing_keys"]
    assert again.num_parameters() < model.num_parameters()
    with without(model, again.eval(), found.slices):
        expected = model(input_ids=windows, use_cache=False).logits
    logits = again(input_ids=windows, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("what", SIZES)
@torch.no_grad()
def test_in_float64_nothing_is_left_of_the_difference(what: str, tmp_path: Path) -> None:
    """What is seen of it in float32 is rounding, of the size of the logits and not of the model."""
    model = model_of(GATE[what][0], tmp_path).double()
    windows = torch.randint(2, 60, (2, 12), generator=torch.Generator().manual_seed(0))  # [windows, length]
    config = shrunk_config(model.config.to_dict(), **{what: SIZES[what]})  # type: ignore[arg-type]
    found = cut_width(model, config, (what,), partial(activation_importance, windows=windows))[0]
    with without(model, found.model, found.slices):
        expected = model(input_ids=windows, use_cache=False).logits
    torch.testing.assert_close(found.model(input_ids=windows, use_cache=False).logits, expected, rtol=1e-10, atol=1e-12)


def test_the_listed_families_are_there() -> None:
    assert set(SIZES) == set(WIDTHS)
    assert set(decoders()) >= {name for names in (*GATE.values(), *REFUSED.values()) for name in names}
