"""What the blocks behind a pruned block are calibrated on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prunegpt.lm.views import block_matrices, select
from prunegpt.pruning.statistics import block_statistics, evaluating
from tests.pruning.statistics.families import FAMILIES

Make = Callable[[str], Any]
InputsOf = Callable[..., dict[str, Tensor]]
FIRST = {  # the layers at the entrance of a block: what they see does not depend on the block itself
    "gpt2": "c_attn",
    "llama": "q_proj",
    "opt": "q_proj",
    "gemma3": "q_proj",
    "neox": "query_key_value",
    "bloom": "query_key_value",
}


def prune_as_it_goes(model: Any, windows: Tensor, propagate: bool) -> dict[str, Tensor]:
    """Halves every weight of a block when its statistics have come; returns the Gram matrices."""
    views = block_matrices(model)
    grams = {}
    for part in block_statistics(model, views, windows, gram=True, propagate=propagate, micro_batch=2):
        for name, statistics in part.items():
            assert statistics.gram is not None
            grams[name] = statistics.gram
            views[name].matrix.mul_(0.5)
    return grams


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_propagate(make_model: Make, inputs_of: InputsOf, windows: Tensor, family: str) -> None:
    model = make_model(family)
    grams = prune_as_it_goes(model, windows, propagate=True)
    pruned = inputs_of(model, block_matrices(model), windows)
    entrances = [name for name in grams if name.split(".")[-2] == FIRST[family]]
    assert len(entrances) >= 2
    for name in entrances:
        torch.testing.assert_close(grams[name], pruned[name].t() @ pruned[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_do_not_propagate_where_it_is_switched_off(
    make_model: Make, inputs_of: InputsOf, windows: Tensor, family: str
) -> None:
    model = make_model(family)
    dense = inputs_of(model, block_matrices(model), windows)
    grams = prune_as_it_goes(model, windows, propagate=False)
    for name, inputs in dense.items():
        torch.testing.assert_close(grams[name], inputs.t() @ inputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("propagate", [True, False])
def test_only_the_blocks_with_wanted_layers_are_looked_at(
    make_model: Make, inputs_of: InputsOf, windows: Tensor, propagate: bool
) -> None:
    model = make_model("gemma3")
    views = select(model, layers=[1], targets=["*.up_proj"])
    expected = inputs_of(model, views, windows)
    parts = list(block_statistics(model, views, windows, gram=True, propagate=propagate))
    assert [list(part) for part in parts] == [list(views)]
    for name, inputs in expected.items():
        torch.testing.assert_close(parts[0][name].gram, inputs.t() @ inputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("propagate", [True, False])
def test_layers_outside_the_blocks_are_seen_in_a_pass_of_the_model(
    make_model: Make, inputs_of: InputsOf, windows: Tensor, propagate: bool
) -> None:
    model = make_model("opt")  # has projections before and behind its blocks
    views = select(model, targets=["*project_out*", "*.0.fc1"])
    dense = inputs_of(model, views, windows)
    outside = next(name for name in views if "project_out" in name)
    inside = next(name for name in views if "fc1" in name)
    seen = []
    found = {}
    for part in block_statistics(model, views, windows, gram=True, propagate=propagate, micro_batch=2):
        seen += list(part)
        found |= part
        if inside in part:
            views[inside].matrix.zero_()
    assert seen == [inside, outside]
    expected = inputs_of(model, views, windows)[outside] if propagate else dense[outside]
    torch.testing.assert_close(found[outside].gram, expected.t() @ expected, rtol=1e-4, atol=1e-4)


def test_evaluation_mode_lasts_as_long_as_the_context(make_model: Make) -> None:
    model = make_model("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
