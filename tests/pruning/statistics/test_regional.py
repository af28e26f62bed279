"""Regional gradients, against a plain loop over decoder layers and windows."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunegpt.errors import PruningError
from prunegpt.lm.views import block_matrices, decoder_blocks
from prunegpt.pruning.statistics import block_statistics, collect, collect_statistics, evaluating, statistics_key
from prunegpt.pruning.statistics.store import StatisticsStore
from tests.pruning.statistics.families import FAMILIES
from tests.support.families import tiny
from tests.support.toys import hooked

Make = Callable[[str], Any]


def by_hand(model: Any, windows: Tensor) -> dict[str, Tensor]:
    """sqrt(Σ_n (∂||f(x_n)||_2 / ∂W)²) by parameter name, [out, in]: what layers are called with in a plain pass is
    noted, then each is called so by itself, and differentiated."""
    place, blocks = decoder_blocks(model)
    squares: dict[str, Tensor] = {}
    for window in windows:
        calls: list[tuple[Any, ...]] = []

        def note(module: nn.Module, args: Any, kwargs: Any, calls: list[tuple[Any, ...]] = calls) -> None:
            calls.append((args, kwargs))

        handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
        with torch.no_grad():
            model(input_ids=window[None], use_cache=False)
        for handle in handles:
            handle.remove()
        for index, (block, (args, kwargs)) in enumerate(zip(blocks, calls, strict=True)):
            model.zero_grad()
            output = block(*args, **kwargs)
            states = output if isinstance(output, Tensor) else output[0]
            states.float().square().sum().sqrt().backward()
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear | Conv1D):
                    gradient = module.weight.grad.float()
                    gradient = gradient.t() if isinstance(module, Conv1D) else gradient  # [out, in]
                    full = f"{place}.{index}.{name}.weight"
                    squares[full] = squares.get(full, 0) + gradient.square()
    model.zero_grad()
    return {name: total.sqrt() for name, total in squares.items()}


def regional(model: Any, windows: Tensor, **given: Any) -> dict[str, Any]:
    """All that a walk finds, by parameter name."""
    found: dict[str, Any] = {}
    given = {"gram": False, "propagate": False, "regional": True, **given}
    with evaluating(model):
        for part in block_statistics(model, block_matrices(model), windows, **given):
            found |= part
    return found


@pytest.fixture(params=["walk", "whole model"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether decoder layers are run by themselves, or cannot be."""
    if request.param == "whole model":

        def capture(*_: Any, **__: Any) -> Any:
            raise collect.WalkError("blocks cannot be run by themselves")

        monkeypatch.setattr(collect, "capture", capture)
    return str(request.param)


def close(found: Mapping[str, Any], expected: Mapping[str, Tensor], rtol: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        own = found[name].regional_gradient
        assert (own.dtype, own.shape) == (torch.float32, gradient.shape)
        torch.testing.assert_close(own, gradient, rtol=rtol, atol=rtol * float(gradient.max()))
        assert float(gradient.max()) > 0


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_a_plain_loop(
    make_model: Make, windows: Tensor, way: str, family: str, propagate: bool
) -> None:
    model = make_model(family)
    close(regional(model, windows, propagate=propagate), by_hand(model, windows))


def test_what_follows_a_pruned_layer_sees_it(make_model: Make, windows: Tensor, way: str) -> None:
    model = make_model("llama")
    views = block_matrices(model)
    found = {}
    for part in block_statistics(model, views, windows, gram=False, propagate=True, regional=True):
        found |= part
        if any(name.startswith("model.layers.0.") for name in part):
            for name in part:
                views[name].matrix.mul_(0.5)
    expected = by_hand(model, windows)
    second = {name for name in expected if name.startswith("model.layers.1.")}
    assert second
    close({name: found[name] for name in second}, {name: expected[name] for name in second})


def test_no_batch_mixes_windows(make_model: Make, windows: Tensor) -> None:
    model = make_model("gpt2")
    runs = [regional(model, windows, micro_batch=size, offload=offload) for size, offload in ((1, False), (4, True))]
    runs.append(regional(model, windows))
    for other in runs[1:]:
        for name, found in runs[0].items():
            assert torch.equal(found.regional_gradient, other[name].regional_gradient)
            assert torch.equal(found.input_norm, other[name].input_norm)


def test_norms_and_grams_are_those_without_gradients(make_model: Make, windows: Tensor, way: str) -> None:
    model = make_model("llama")
    with_it, without = (regional(model, windows, gram=True, micro_batch=1, regional=asked) for asked in (True, False))
    for name, found in without.items():
        assert found.regional_gradient is None
        assert torch.equal(found.gram, with_it[name].gram)
        assert torch.equal(found.input_norm, with_it[name].input_norm)
        assert not with_it[name].gram.requires_grad
    keys = [name for name in with_it if name.endswith(("0.self_attn.q_proj.weight", "0.self_attn.k_proj.weight"))]
    assert len({id(with_it[name].gram) for name in keys}) == 1  # one factor for one input


def test_the_model_is_left_as_it_was(make_model: Make, windows: Tensor, way: str) -> None:
    model = make_model("gpt2").train()
    frozen = model.transformer.h[0].mlp.c_fc.weight
    frozen.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = regional(model, windows)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(one.requires_grad == (one is not frozen) and one.grad is None for one in model.parameters())
    assert not any(map(hooked, model.modules()))
    assert model.training
    assert torch.is_grad_enabled()
    assert not any(one.regional_gradient.requires_grad for one in found.values())
    assert bool(found["transformer.h.0.mlp.c_fc.weight"].regional_gradient.any())

    def fail(module: nn.Module, args: Any) -> None:
        raise RuntimeError("power cut")

    handle = model.transformer.h[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="power cut"):
        regional(model, windows)
    handle.remove()
    assert all(one.requires_grad == (one is not frozen) for one in model.parameters())
    assert not any(map(hooked, model.modules()))


def test_weights_in_bfloat16_have_sums_in_float32(make_model: Make, windows: Tensor) -> None:
    model = make_model("llama").bfloat16()
    close(regional(model, windows), by_hand(model, windows), rtol=0.02)


def test_experts_have_the_gradients_of_their_part_of_the_parameter(windows: Tensor, way: str) -> None:
    model = tiny("mixtral")
    windows = windows % 60 + 2
    found = regional(model, windows)
    _, blocks = decoder_blocks(model)
    squares: dict[str, Tensor] = {}
    for window in windows:
        states: list[Tensor] = []
        with evaluating(model):
            handles = [block.register_forward_hook(lambda _, x, output, s=states: s.append(output)) for block in blocks]
            model(input_ids=window[None], use_cache=False)
            for handle in handles:
                handle.remove()
        for index, block in enumerate(blocks):
            fused = {name: getattr(block.mlp.experts, name) for name in ("gate_up_proj", "down_proj")}
            norm = torch.linalg.vector_norm(states[index])
            gradients = torch.autograd.grad(norm, list(fused.values()), retain_graph=True)
            for name, gradient in zip(fused, gradients, strict=True):
                full = f"model.layers.{index}.mlp.experts.{name}"
                squares[full] = squares.get(full, 0) + gradient.square()  # [experts, out, in]
    experts = [name for name in found if "experts" in name]
    assert len(experts) == 16
    for name in experts:
        stem, _, expert = name.removesuffix("]").rpartition("[")
        expected = squares[stem][int(expert)].sqrt()  # [out, in]
        torch.testing.assert_close(found[name].regional_gradient, expected, rtol=1e-3, atol=1e-7)


def test_a_matrix_that_layers_share_adds_up_what_they_say(make_model: Make, windows: Tensor) -> None:
    model = make_model("llama")
    first, second = (layer.mlp.up_proj for layer in model.model.layers)
    apart = {name: one for name, one in by_hand_of_shared(model, windows).items() if "up_proj" in name}
    second.weight = first.weight
    found = regional(model, windows)
    name = "model.layers.0.mlp.up_proj.weight"
    assert block_matrices(model)[name].shared
    expected = (apart[name].square() + apart["model.layers.1.mlp.up_proj.weight"].square()).sqrt()
    torch.testing.assert_close(found[name].regional_gradient, expected, rtol=1e-4, atol=1e-6)


def by_hand_of_shared(model: Any, windows: Tensor) -> dict[str, Tensor]:
    """As :func:`by_hand`, of layers with equal matrices, of which each still has its own."""
    first, second = (layer.mlp.up_proj for layer in model.model.layers)
    with torch.no_grad():
        second.weight.copy_(first.weight)
    return by_hand(model, windows)


def test_layers_that_are_always_run_without_gradients_are_refused(windows: Tensor) -> None:
    message = r"need decoder layers that are run with gradients; Reformer\w+ runs its own without\. Use wanda\."
    with pytest.raises(
        PruningError, match=message
    ):  # its layers are reversible, and differentiated by a way of their own
        regional(tiny("reformer"), windows % 60 + 2)


def test_the_store_holds_them_beside_the_rest(make_model: Make, windows: Tensor, tmp_path: Path) -> None:
    model = make_model("gpt2")
    expected = regional(model, windows, gram=True)
    store = collect_statistics(model, windows, tmp_path, regional=True)
    assert store.key == statistics_key(model, windows, regional=True) != statistics_key(model, windows)
    for name, one in expected.items():
        found = store.layer(name)
        for what in ("regional_gradient", "input_norm", "input_mean", "gram"):
            assert torch.equal(getattr(found, what), getattr(one, what))
    assert collect_statistics(model, windows, tmp_path).layer(name).regional_gradient is None
    assert len(list(tmp_path.iterdir())) == 2
    assert StatisticsStore(store.folder).regional
