"""Gradients one decoder layer at a time are those of a pass of the whole model."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunegpt.errors import Interrupted, PruningError, StreamingError
from prunegpt.lm.views import all_matrices, block_matrices
from prunegpt.pruning.oneshot import prune_oneshot
from prunegpt.pruning.statistics import GradientStatistics, evaluating, gradient_statistics
from prunegpt.pruning.statistics.activations import WalkError
from prunegpt.pruning.statistics.layerwise import layer_gradients
from tests.support.families import tiny

Make = Callable[[str], Any]


def same(one: GradientStatistics | None, other: GradientStatistics, name: str, single: bool) -> bool:
    """Whether all that is known of a layer is the same to the bit."""
    assert one
    pairs = [(found.gradient[name], found.squared_gradient[name]) for found in (one, other)]
    samples = not single or torch.equal(one.samples(name), other.samples(name))
    return samples and all(torch.equal(ours, theirs) for ours, theirs in zip(*pairs, strict=True))


def checked(model: Any, views: Mapping[str, Any], windows: Tensor, folder: Path, *, single: bool) -> list[list[str]]:
    """Compares the gradients of all layers while they are pruned whole, item by item; the names of each item."""
    whole = gradient_statistics(model, views, windows, samples=folder / "whole" if single else None)
    items = []
    with evaluating(model), torch.no_grad():
        samples = folder / "single" if single else None
        for part in layer_gradients(model, views, windows, folder / "layers", samples=samples):
            for name, found in part.items():
                assert same(found, whole, name, single), name
                assert found is not None
                assert (found.windows, found.tokens) == (whole.windows, whole.tokens)
            if samples and samples.exists():
                assert len([*samples.iterdir()]) == len(part)
            for name in part:
                views[name].matrix.zero_()
            items.append([*part])
    assert sorted(name for item in items for name in item) == sorted(views)
    return items


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma3", "neox", "bloom"])
def test_they_are_those_of_the_whole_model(
    make_model: Make, windows: Tensor, tmp_path: Path, family: str, single: bool
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(family).to(dtype)
        views = block_matrices(model)
        items = checked(model, views, windows, tmp_path / str(dtype), single=single)
        blocks = [{views[name].block for name in item} for item in items]
        assert blocks == [{index} for index in reversed(range(model.config.num_hidden_layers))]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "zamba"])
def test_of_experts_and_of_layers_that_share_matrices(windows: Tensor, tmp_path: Path, family: str) -> None:
    model = tiny(family).eval()
    items = checked(model, block_matrices(model), windows % 60, tmp_path, single=True)
    shared = [name for name, view in block_matrices(model).items() if view.shared]
    assert bool(shared) == (family == "zamba")
    assert not shared or items[-1] == shared


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_of_embeddings_and_heads(make_model: Make, windows: Tensor, tmp_path: Path, family: str) -> None:
    model = make_model(family)
    views = all_matrices(model)
    items = checked(model, views, windows, tmp_path, single=False)
    assert {views[name].block for name in items[-1]} == {None}


def test_layers_in_front_of_the_first_that_is_wanted_are_not_run_again(
    make_model: Make, windows: Tensor, tmp_path: Path
) -> None:
    model = make_model("gemma3")
    views = {name: view for name, view in block_matrices(model).items() if view.block == 1 and "mlp" in name}
    calls = [0, 0, 0]
    for index, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    assert checked(model, views, windows, tmp_path, single=False) == [[], [*views]]
    assert calls[1] - calls[0] == len(windows)
    assert calls[2] - calls[1] == 1  # of the few tokens that the walk is tried on


def test_in_the_precision_that_the_model_is_run_in(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    """As accelerate has it in a training: the model's own call enters autocast."""
    model = make_model("llama")
    plain, mixed = model.forward, torch.autocast("cpu", torch.bfloat16)
    views = block_matrices(model)
    before = gradient_statistics(model, views, windows)
    model.forward = mixed(plain)
    name = next(iter(views))
    assert not torch.equal(gradient_statistics(model, views, windows).gradient[name], before.gradient[name])
    checked(model, views, windows, tmp_path, single=False)


@pytest.mark.parametrize("family", ["gemma3n_text", "dory"])
def test_models_that_cannot_be_walked_are_run_whole(windows: Tensor, tmp_path: Path, family: str) -> None:
    """One shares keys and values, so that gradients go past layers; one hands on more than hidden states."""
    model, tokens = tiny(family).eval(), windows % 60
    with pytest.raises(WalkError):
        layer_gradients(model, block_matrices(model), tokens, tmp_path)
    prune = partial(prune_oneshot, model, block_matrices(model), sparsity=0.5, calibration=tokens)
    with pytest.raises(StreamingError, match="cannot be run by themselves"):
        prune(method="taylor", place=torch.device("cpu"))
    found = prune(method="obert")
    assert len(found.rows) == len(block_matrices(model))


LAYERS = 3  # of gemma3


def test_a_pass_that_is_broken_off_resumes_to_the_same_bits(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    """Stopped forward, at the losses, and on the way back: what is done of a layer is not done again."""
    model = make_model("gemma3")
    views = block_matrices(model)
    whole = gradient_statistics(model, views, windows)
    count, starts = len(windows), []

    def attempt(stop: int) -> dict[str, Any]:
        told: list[int] = []

        def calibrated(done: int, total: int) -> None:
            told.append(done)
            assert total == count * (2 * LAYERS + 1)
            if done == stop:
                raise Interrupted("stopped")

        try:
            with evaluating(model), torch.no_grad():
                items = layer_gradients(model, views, windows, tmp_path, kept=True, calibrated=calibrated)
                return {name: found for part in items for name, found in part.items()}
        finally:
            starts.append(told[0] if told else None)

    for stop in (2, count * LAYERS + 1, count * (LAYERS + 1) + 3, count * (LAYERS + 2) + 1):
        with pytest.raises(Interrupted):
            attempt(stop)
    for _ in range(2):
        assert all(same(found, whole, name, single=False) for name, found in attempt(0).items())
    assert starts == [1, 1, 1, count * (LAYERS + 1) + 1, count * (LAYERS + 2) + 1, None]


@pytest.mark.parametrize("solves", [False, True])
def test_single_gradients_that_are_not_kept_are_made_again(
    make_model: Make, windows: Tensor, tmp_path: Path, solves: bool
) -> None:
    """Of layers that are solved none is, and no attempt runs forward what an earlier one has."""
    model = make_model("gemma3")
    views = block_matrices(model)
    whole = gradient_statistics(model, views, windows, samples=tmp_path / "whole")
    solved: set[str] = set()
    forward: list[int] = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: forward.append(0))

    def walk(last: int) -> list[list[bool]]:
        """Whether the gradients of each layer are known, item by item."""
        found = []
        with evaluating(model), torch.no_grad():
            items = layer_gradients(
                model, views, windows, tmp_path / "layers", samples=tmp_path / "single", kept=True, solved=solved
            )
            for _, part in zip(range(last + 1), items, strict=False):
                assert all(known is None or same(known, whole, name, single=True) for name, known in part.items())
                found.append([known is not None for known in part.values()])
                solved.update(part if solves else ())
        return found

    size = len(views) // LAYERS
    assert walk(1) == [[True] * size] * 2
    before = len(forward)
    assert walk(2) == [[not solves] * size] * 2 + [[True] * size]
    assert len(forward) - before == len(windows) + 5  # back through it, and what the walk is tried on
    solved.clear()  # what is damaged on the disk counts as not there
    assert walk(2) == [[True] * size] * LAYERS


def test_a_loss_that_is_not_finite_is_refused(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(torch.inf)
    with pytest.raises(PruningError, match=r"must be finite; that of window 0 is"):
        layer_gradients(model, block_matrices(model), windows, tmp_path)


@pytest.mark.parametrize("size", [None, 100])
def test_states_that_are_gone_or_cut_short_are_an_error(
    make_model: Make, windows: Tensor, tmp_path: Path, size: int | None
) -> None:
    """What a cleaner of temporary files does: zeros in their place would be gradients of another model."""
    model = make_model("gpt2")
    views = block_matrices(model)
    with torch.no_grad():
        items = iter(layer_gradients(model, views, windows, tmp_path / "layers", samples=tmp_path / "single"))
        next(items)
        states = min(tmp_path.rglob("states"))  # of the layer that is left
        states.unlink()
        if size is not None:
            states.write_bytes(bytes(size))
        with pytest.raises(PruningError, match=f"must stay as it was written .* got {size or 'no file'}"):
            list(items)
