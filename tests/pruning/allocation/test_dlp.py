"""DLP against the published calculation, and on a model against scores from plain hooks."""

from statistics import median_low
from typing import Any

import pytest
import torch
from torch import Tensor

from prunegpt.lm.views import block_matrices
from prunegpt.pruning.allocation.dlp import dlp, median_score
from prunegpt.spec.schema import PruneSpec
from prunegpt.stages.base import ModelState, Pruned
from prunegpt.stages.budget import sparsities_of
from tests.support.families import tiny


def by_the_paper(medians: list[float], sparsity: float, limit: float) -> list[float]:
    """Density of layers of one size: 1 - share of all medians, scaled to 2·limit, moved to the mean 1 - sparsity."""
    kept = [1 - one / sum(medians) for one in medians]
    scaled = [(one - min(kept)) / (max(kept) - min(kept)) * 2 * limit for one in kept]
    return [1 - (one - sum(scaled) / len(scaled) + 1 - sparsity) for one in scaled]


@pytest.mark.parametrize("limit", [0.05, 0.15])
def test_it_is_the_papers_formula_where_nothing_is_clamped(limit: float) -> None:
    medians = [0.1, 0.4, 0.3, 0.9, 0.5]
    names = [str(block) for block in range(5)]
    blocks: dict[str, int | None] = {name: int(name) for name in names}
    found = dlp(dict.fromkeys(names, 64), 0.7, median_scores=dict(enumerate(medians)), blocks=blocks, limit=limit)
    assert [found[name] for name in names] == pytest.approx(by_the_paper(medians, 0.7, limit), abs=1e-12)


def test_the_mean_over_all_weights_is_the_sparsity_also_where_a_layer_would_be_more_than_empty() -> None:
    sizes = {"wte": 50, "a": 10, "b": 30, "c": 20}
    blocks = {"wte": None, "a": 0, "b": 1, "c": 2}
    found = dlp(sizes, 0.9, median_scores={0: 1.0, 1: 3.0, 2: 2.0}, blocks=blocks, limit=0.3)
    assert found["wte"] == 0.9
    assert found["b"] == 1.0
    assert sum(found[name] * size for name, size in sizes.items()) == pytest.approx(0.9 * sum(sizes.values()))
    assert found["a"] < found["c"] < found["b"]


def test_equal_medians_give_equal_sparsities() -> None:
    found = dlp({"a": 10, "b": 10}, 0.5, median_scores={0: 0.2, 1: 0.2}, blocks={"a": 0, "b": 1})
    assert found == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_medians_of_a_model_are_those_of_what_its_layers_are_given(family: str) -> None:
    """Inputs of each matrix from plain hooks on the dense model; of a mixture the layers of attention alone."""
    model = tiny(family)
    windows = torch.randint(2, 60, (4, 16), generator=torch.Generator().manual_seed(0))  # [windows, length]
    spec = PruneSpec(sparsity=0.6, allocation="dlp", targets=("*attn*",))
    views = {name: view for name, view in block_matrices(model).items() if "attn" in name}
    seen: dict[str, list[Tensor]] = {}
    handles = [
        view.module.register_forward_hook(lambda _, given, __, name=name: seen.setdefault(name, []).append(given[0]))
        for name, view in views.items()
    ]
    with torch.no_grad():
        model(input_ids=windows)
    for handle in handles:
        handle.remove()
    scores: dict[int, list[float]] = {}
    for name, view in views.items():
        norm = torch.cat([one.flatten(0, -2) for one in seen[name]]).double().square().mean(0).sqrt()  # [in]
        assert view.block is not None
        scores.setdefault(view.block, []).extend((view.matrix.double().abs() * norm).flatten().tolist())
    medians = [median_low(scores[block]) for block in sorted(scores)]
    state = ModelState(model, _none(), Pruned())
    found = sparsities_of(spec, state, views, windows)
    assert found is not None
    expected = by_the_paper(medians, 0.6, 0.15)
    assert [found[name] for name in views] == pytest.approx([expected[view.block or 0] for view in views.values()])
    assert len({round(value, 6) for value in found.values()}) == 2


def _none() -> Any:
    return None


def test_a_median_is_of_all_matrices_of_a_layer_together() -> None:
    assert median_score([torch.tensor([[1.0, 9.0]]), torch.tensor([[2.0], [3.0], [8.0]])]) == 3.0
