"""Which layers are chosen: each choice against a calculation of its own, and what has been tried is not tried again."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prunegpt.lm.views import decoder_blocks
from prunegpt.registry import LAYER_CHOICES
from tests.support.families import tiny

FAMILIES = ("gpt2", "llama", "mixtral", "opt", "bloom", "mamba2")
LAYERS = 4


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(2, 60, (6, 16), generator=torch.Generator().manual_seed(0))  # [windows, length]


def rough(family: str) -> Any:
    """A model whose layers matter unequally."""
    model = tiny(family, num_hidden_layers=LAYERS, n_layer=LAYERS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def choose(name: str, model: Any, windows: Tensor, **given: Any) -> Any:
    defaults = {"drop": 2, "among": range(LAYERS), "tried": lambda *_: None, "folder": None}
    return LAYER_CHOICES.load(name)(model, windows, **{**defaults, **given})


def loss_of(model: Any, windows: Tensor) -> Tensor:
    logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).double(), windows[:, 1:].flatten())


@contextmanager
def scaled(model: Any, factors: dict[int, Any]) -> Iterator[None]:
    """What a layer adds to the hidden states is multiplied by a factor."""

    def hook_of(layer: int) -> Any:
        def hook(_module: Any, given: Any, named: Any, output: Any) -> Any:
            before = given[0] if given else named["hidden_states"]
            after = output if isinstance(output, Tensor) else output[0]
            states = before + factors[layer] * (after - before)
            return states if isinstance(output, Tensor) else (states, *output[1:])

        return hook

    blocks = decoder_blocks(model)[1]
    hooks = [blocks[layer].register_forward_hook(hook_of(layer), with_kwargs=True) for layer in factors]
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_influence_is_one_minus_the_cosine_of_what_goes_in_and_out(family: str, windows: Tensor) -> None:
    model = rough(family)
    states: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(
            lambda _module, given, named: states.append(given[0] if given else named["hidden_states"]), with_kwargs=True
        )
        for block in decoder_blocks(model)[1]
    ]
    last = decoder_blocks(model)[1][-1].register_forward_hook(
        lambda _module, _given, output: states.append(output if isinstance(output, Tensor) else output[0])
    )
    with torch.no_grad():
        model(input_ids=windows, use_cache=False)
    for hook in (*hooks, last):
        hook.remove()
    expected = [
        1 - (before * after).sum(-1).div(before.norm(dim=-1) * after.norm(dim=-1)).double().mean().item()
        for before, after in itertools.pairwise(states)
    ]
    found = choose("influence", model, windows)
    assert list(found.scores.values()) == pytest.approx(expected, rel=1e-4)
    assert found.dropped == tuple(sorted(range(LAYERS), key=expected.__getitem__)[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_is_the_derivative_of_the_loss_by_what_a_layer_adds(family: str, windows: Tensor) -> None:
    model = rough(family)
    gates = {layer: torch.ones((), requires_grad=True) for layer in range(LAYERS)}
    with scaled(model, gates):
        loss_of(model, windows).backward()
    expected = {layer: abs(gate.grad.item()) for layer, gate in gates.items() if gate.grad is not None}
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    model.zero_grad()
    found = choose("taylor", model, windows)
    assert found.scores == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before


@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_drops_one_after_the_other_what_costs_least(family: str, windows: Tensor) -> None:
    model = rough(family)
    gone: list[int] = []
    for _ in range(2):
        losses = {}
        for layer in set(range(LAYERS)) - set(gone):
            with scaled(model, dict.fromkeys([*gone, layer], 0.0)), torch.no_grad():
                losses[layer] = loss_of(model, windows).item()
        gone.append(min(losses, key=losses.__getitem__))
    assert choose("perplexity", model, windows).dropped == tuple(gone)


@pytest.mark.parametrize("name", LAYER_CHOICES.builtin_names())
def test_only_what_may_go_goes_and_the_model_stays_as_it_was(name: str, windows: Tensor) -> None:
    model = rough("llama")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model(input_ids=windows).logits
    found = choose(name, model, windows, among=(1, 3), drop=1)
    assert set(found.scores) == {1, 3}
    assert set(found.dropped) < {1, 3}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(input_ids=windows).logits, logits)


def test_losses_that_an_earlier_attempt_found_are_not_computed_again(windows: Tensor, tmp_path: Path) -> None:
    model = rough("llama")

    class Stopped(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        choose("perplexity", model, windows, tried=stop, folder=tmp_path)
    calls: list[int] = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    again = choose("perplexity", model, windows, folder=tmp_path)
    resumed = len(calls)
    calls.clear()
    whole = choose("perplexity", model, windows)
    hook.remove()
    assert again == whole
    assert resumed < len(calls)
