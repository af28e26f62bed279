"""Sums by hooks against the inputs themselves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunegpt.errors import PruningError
from prunegpt.lm.views import WeightView, block_matrices, select
from prunegpt.pruning.statistics import block_statistics
from prunegpt.pruning.statistics.activations import StopForward
from prunegpt.pruning.statistics.inputs import InputCollector
from tests.pruning.statistics.families import FAMILIES

Make = Callable[[str], Any]


def linear(name: str, width: int) -> WeightView:
    module = nn.Linear(width, 3)
    return WeightView(name, module.weight, module, False, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("micro_batch", [2, None])
def test_statistics_are_those_of_the_inputs(
    make_model: Make, inputs_of: Callable[..., dict[str, Tensor]], windows: Tensor, family: str, micro_batch: int | None
) -> None:
    model = make_model(family)
    views = block_matrices(model)
    expected = inputs_of(model, views, windows)
    found = {}
    for part in block_statistics(model, views, windows, gram=True, propagate=False, micro_batch=micro_batch):
        found |= part
    assert list(found) == list(views)
    for name, inputs in expected.items():
        torch.testing.assert_close(found[name].gram, inputs.t() @ inputs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[name].input_norm, inputs.norm(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name].input_mean, inputs.mean(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name].input_variance, inputs.var(dim=0, unbiased=False), rtol=1e-3, atol=1e-5)
        assert found[name].tokens == windows.numel()


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_alone_are_the_same(make_model: Make, windows: Tensor, family: str) -> None:
    model = make_model(family)
    views = block_matrices(model)
    both = [list(block_statistics(model, views, windows, gram=gram, propagate=False)) for gram in (True, False)]
    for whole, norms in zip(*both, strict=True):
        for name in whole:
            assert norms[name].gram is None
            torch.testing.assert_close(norms[name].input_norm, whole[name].input_norm, rtol=1e-4, atol=1e-5)
            assert torch.equal(norms[name].input_mean, whole[name].input_mean)


@pytest.mark.parametrize(
    ("family", "shared"),
    [
        ("llama", {"q_proj": "k_proj", "k_proj": "v_proj", "gate_proj": "up_proj"}),
        ("opt", {"q_proj": "k_proj", "k_proj": "v_proj"}),
    ],
)
def test_layers_with_one_input_share_one_gram(
    make_model: Make, windows: Tensor, family: str, shared: dict[str, str]
) -> None:
    model = make_model(family)
    for part in block_statistics(model, block_matrices(model), windows, gram=True, propagate=True, micro_batch=2):
        kinds = {name.split(".")[-2]: statistics for name, statistics in part.items()}
        for one, other in shared.items():
            assert kinds[one] is kinds[other]
        assert len({id(statistics) for statistics in part.values()}) == len(part) - len(shared)


def test_wide_inputs_are_summed_in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunegpt.pruning.statistics.inputs.PANEL", 5)
    view = linear("wide", 13)
    collector = InputCollector({"wide": view}, gram=True)
    inputs = torch.randn(2, 4, 13)
    with collector.attached():
        view.module(inputs)
        collector.end_batch()
    gram = collector.results()["wide"].gram
    assert gram is not None
    torch.testing.assert_close(gram, inputs.view(8, 13).t() @ inputs.view(8, 13))
    assert torch.equal(gram, gram.t())


def test_layers_that_only_sometimes_share_are_summed_right() -> None:
    """As the experts of a mixture may: one is skipped, one is used twice, two share an input in one batch alone."""
    views = {name: linear(name, 4) for name in ("a", "b", "c")}
    collector = InputCollector(views, gram=True, stop_early=True)
    batches = [torch.randn(6, 4) for _ in range(5)]
    with collector.attached():
        views["a"].module(batches[0])
        views["b"].module(batches[0])
        collector.end_batch()
        views["a"].module(batches[1])
        views["b"].module(batches[2])
        views["b"].module(batches[2])
        views["c"].module(batches[3])
        views["a"].module(batches[4])
        collector.end_batch()
    expected = {"a": [0, 1, 4], "b": [0, 2, 2], "c": [3]}
    for name, seen in expected.items():
        inputs = torch.cat([batches[index] for index in seen])
        found = collector.results()[name]
        assert found.gram is not None
        torch.testing.assert_close(found.gram, inputs.t() @ inputs)
        torch.testing.assert_close(found.input_norm, inputs.norm(dim=0))
        torch.testing.assert_close(found.input_mean, inputs.mean(dim=0))
        assert found.tokens == inputs.shape[0]


def test_a_pass_is_broken_off_once_it_is_known_that_nothing_follows() -> None:
    views = {name: linear(name, 4) for name in ("a", "b")}
    collector = InputCollector(views, gram=True, stop_early=True)
    inputs = torch.randn(3, 4)

    def batch() -> None:
        for view in views.values():
            view.module(inputs)

    with collector.attached():
        batch()  # the first is run to its end
        collector.end_batch()
        with pytest.raises(StopForward):
            batch()
        collector.end_batch()
    assert collector.results()["b"].tokens == 6


def test_hooks_go_when_calibration_ends_even_badly() -> None:
    view = linear("a", 4)
    collector = InputCollector({"a": view}, gram=True)
    with pytest.raises(RuntimeError, match="enough"), collector.attached():
        raise RuntimeError("enough")
    assert not view.module._forward_pre_hooks


def test_a_layer_that_no_token_reaches_is_an_error() -> None:
    collector = InputCollector({"far": linear("far", 4)}, gram=True)
    with pytest.raises(PruningError, match=r"no token came to far. Exclude it"):
        collector.results()


def test_embeddings_have_no_activations(make_model: Make, windows: Tensor) -> None:
    model = make_model("gpt2")
    views = select(model, targets=["transformer.wpe.weight"])
    with pytest.raises(PruningError, match=r"wpe.weight is an embedding, whose inputs are token ids"):
        list(block_statistics(model, views, windows, gram=True, propagate=True))
