"""Masks of Wanda and SparseGPT against a calculation of its own, from plain hooks on the whole model, in float64."""

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from prunegpt.lm.views import block_matrices
from prunegpt.pruning.oneshot import prune_oneshot
from tests.support.families import tiny

DENSE = (
    *("gpt2", "llama", "qwen3", "gpt_neox", "phi3", "falcon", "opt", "bloom", "gemma3_text", "deepseek_v3"),
    *("mamba2", "recurrent_gemma", "zamba", "zamba2", "hrm_text", "xlm", "dory", "lfm2"),
)
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_next", "gpt_oss", "jamba", "olmoe")
SLOW = ("opt", "bloom", "gemma3_text", "zamba", "xlm", "lfm2", "olmoe", "qwen3", "deepseek_v3")
DAMPING = 0.01
TIE = 1e-4  # relative difference of scores that float32 may order either way

Inputs = dict[str, list[Tensor]]  # name of a matrix -> [tokens, in] of each call


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(2, 60, (8, 16), generator=torch.Generator().manual_seed(0))  # [windows, length]


def rough(family: str) -> Any:
    """A model whose weights are large enough for its layers to matter."""
    model = tiny(family)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


# -- what each matrix is given -----------------------------------------------------------------------------------------


def gpt_oss_neurons(experts: Any, expert: int, hidden: Tensor) -> Tensor:
    gate_up = hidden @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]  # [tokens, 2 · width]
    gate, up = gate_up[:, ::2].clamp(max=7.0), gate_up[:, 1::2].clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def neurons(experts: Any, expert: int, hidden: Tensor) -> Tensor:
    gate, up = (hidden @ experts.gate_up_proj[expert].t()).chunk(2, dim=-1)  # [tokens, width] twice
    return F.silu(gate) * up


def inputs_of(model: Any, windows: Tensor) -> Inputs:
    found: Inputs = defaultdict(list)

    def of_layer(name: str) -> Callable[..., None]:
        return lambda _, args: found[f"{name}.weight"].append(args[0].reshape(-1, args[0].shape[-1]).clone())

    def of_experts(name: str) -> Callable[..., None]:
        def keep(experts: Any, args: tuple[Tensor, ...]) -> None:
            hidden, chosen = args[0].reshape(-1, args[0].shape[-1]), args[1]  # [tokens, width], [tokens, experts]
            inside = gpt_oss_neurons if model.config.model_type == "gpt_oss" else neurons
            for expert in range(len(experts.down_proj)):
                routed = hidden[(chosen == expert).any(dim=1)]  # [routed, width]
                found[f"{name}.gate_up_proj[{expert}]"].append(routed)
                found[f"{name}.down_proj[{expert}]"].append(inside(experts, expert, routed))

        return keep

    handles = []
    first: dict[int, str] = {}  # of the layers that share a weight
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            handles.append(module.register_forward_pre_hook(of_layer(first.setdefault(id(module.weight), name))))
        elif type(module).__name__.endswith("Experts"):
            handles.append(module.register_forward_pre_hook(of_experts(name)))
    with torch.no_grad():
        model(input_ids=windows, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def weight_of(model: Any, name: str) -> Tensor:
    """[out, in], float64."""
    module = model.get_submodule(name.rpartition(".")[0])
    stem, bracket, index = name.rpartition(".")[2].removesuffix("]").partition("[")
    stored = getattr(module, stem).detach().double()
    matrix = stored[int(index)] if bracket else stored
    return matrix.t() if isinstance(module, Conv1D) or getattr(module, "is_transposed", False) else matrix


# -- the two methods ---------------------------------------------------------------------------------------------------


def wanda(weight: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The mask, and how far each score is from the threshold of its row, as a share of it."""
    scores = weight.abs() * inputs.square().sum(dim=0).sqrt()  # [out, in]
    zeros = weight.shape[1] // 2
    ordered = scores.sort(dim=1, stable=True)
    kept = torch.ones_like(scores, dtype=torch.bool).scatter_(1, ordered.indices[:, :zeros], False)
    threshold = ordered.values[:, zeros - 1 : zeros]  # [out, 1]
    return kept, (scores - threshold).abs() / threshold


def sparsegpt(weight: Tensor, inputs: Tensor) -> Tensor:
    """The mask, by blocks of 128 columns: optimal brain surgery with the inverse of what is left formed anew."""
    masks = []
    gram = inputs.t() @ inputs  # [in, in]
    dead = gram.diagonal() == 0
    gram[dead, dead] = 1.0
    hessian = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    current, width = weight.clone(), len(gram)
    for start in range(0, width, 128):
        end = min(start + 128, width)
        left = torch.stack([torch.linalg.inv(hessian[column:, column:])[0, 0] for column in range(start, end)])
        scores = current[:, start:end].square() / left  # [out, block]
        scores[:, dead[start:end]] = 0.0
        lowest = scores.flatten().argsort(stable=True)[: scores.numel() // 2]
        kept = torch.ones(scores.numel(), dtype=torch.bool).index_fill_(0, lowest, False).view_as(scores)
        for column in range(start, end):
            inverse = torch.linalg.inv(hessian[column:, column:])[0]  # [left]
            lost = torch.where(kept[:, column - start], 0.0, current[:, column]) / inverse[0]  # [out]
            current[:, column:] -= lost[:, None] * inverse
        masks.append(kept)
    return torch.cat(masks, dim=1)


# -- the comparison ----------------------------------------------------------------------------------------------------


def _parametrised() -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in (*DENSE, *MIXTURES)]


def test_enough_kinds_are_compared() -> None:
    assert len(set(DENSE + MIXTURES) - set(SLOW)) >= 12


@pytest.mark.parametrize("family", _parametrised())
def test_masks_are_those_of_plain_hooks(family: str, windows: Tensor) -> None:
    model = rough(family)
    inputs = inputs_of(model, windows)
    pruned = {}
    for method in ("wanda", "sparsegpt"):
        twin = copy.deepcopy(model)
        views = block_matrices(twin)
        result = prune_oneshot(
            twin, views, method=method, sparsity=0.5, calibration=windows, propagate=False, micro_batch=3
        )
        pruned[method] = result.masks
    assert len(pruned["wanda"]) >= 4
    exact = compared = 0
    for name, mask in pruned["wanda"].items():
        seen = torch.cat(inputs[name]).double() if name in inputs else torch.empty(0)  # [tokens, in]
        if not seen.numel():
            assert name.endswith("]"), name  # an expert that no token came to
            continue
        weight = weight_of(model, name)
        expected, distance = wanda(weight, seen)
        assert bool(((mask == expected) | (distance < TIE)).all()), name
        exact += int((mask == expected).sum())
        compared += mask.numel()
        solved = sparsegpt(weight, seen)
        differ = int((pruned["sparsegpt"][name] != solved).sum())
        assert differ <= 0.005 * solved.numel(), (name, differ)
    assert exact >= 0.9999 * compared
