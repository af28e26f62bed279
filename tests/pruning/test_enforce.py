from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from prunegpt.errors import PruningError
from prunegpt.lm.views import WeightView, block_matrices, select
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import load_masks, save_masks
from tests.support.toys import Toy, wrapped

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda parameters: Adam(parameters, lr=0.05, amsgrad=True),
    "adam with decay in the gradient": lambda parameters: Adam(parameters, lr=0.05, weight_decay=0.1),
    "adamw": lambda parameters: AdamW(parameters, lr=0.05, weight_decay=0.1),
    "sgd": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
}


def some_masks(toy: Toy, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(view.matrix.shape, generator=generator) > 0.6 for name, view in toy.views().items()}


def backward(toy: Toy, step: int) -> None:
    toy.zero_grad()
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(step)).to(toy.head.weight.dtype)
    toy(inputs).float().square().sum().backward()


def train(toy: Toy, enforcer: Enforcer, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        backward(toy, step)
        enforcer.mask_gradients()
        optimizer.step()
        enforcer.mask_weights()


def moments_of(optimizer: Optimizer, view: WeightView) -> dict[str, Tensor]:
    state = optimizer.state[view.parameter]
    return {
        key: value.t() if view.transposed else value
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == view.parameter.shape
    }


@given(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]), st.integers(0, 99))
@settings(deadline=None)
def test_bits_zero_what_is_pruned_and_leave_the_rest_bit_for_bit(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(4, 5, generator=generator).to(dtype)
    tensor[0] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0])
    mask = torch.rand(4, 5, generator=generator) > 0.5
    expected = torch.where(mask, tensor, torch.zeros_like(tensor))
    Mask(mask).apply(tensor)
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    assert torch.equal(tensor.view(width), expected.view(width))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_gradients_and_moments_stay_zero_under_the_mask(
    make_toy: Callable[[], Toy], name: str, dtype: torch.dtype
) -> None:
    toy = make_toy().to(dtype)
    views, masks = toy.views(), some_masks(toy)
    optimizer = OPTIMIZERS[name](toy.parameters())
    enforcer = Enforcer(views)
    train(toy, enforcer, optimizer, range(3))  # dense: moments are alive everywhere
    assert all(bool((m != 0).all()) for view in views.values() for m in moments_of(optimizer, view).values())
    enforcer.set_masks(wrapped(masks), optimizer)
    enforcer.mask_weights()
    for steps in (range(3, 4), range(4, 8)):
        train(toy, enforcer, optimizer, steps)
        for view in views.values():
            pruned = ~masks[view.name]
            assert view.gradient is not None
            assert not bool(view.matrix[pruned].any())
            assert not bool(view.gradient[pruned].any())
            moments = moments_of(optimizer, view)
            assert moments
            assert not any(bool(moment[pruned].any()) for moment in moments.values())
            assert bool((view.matrix[masks[view.name]] != 0).all())
    assert bool((toy.head.weight != 0).all())


def test_without_a_reset_momentum_would_move_pruned_weights(make_toy: Callable[[], Toy]) -> None:
    """What the reset is for: the same run, with masked gradients and weights only."""
    toy = make_toy()
    view = toy.views()["first.weight"]
    optimizer = OPTIMIZERS["adamw"](toy.parameters())
    enforcer = Enforcer(toy.views())
    train(toy, enforcer, optimizer, range(3))
    masks = some_masks(toy)
    enforcer.set_masks(wrapped(masks))  # no optimizer given
    enforcer.mask_weights()
    backward(toy, 3)
    enforcer.mask_gradients()
    optimizer.step()
    assert bool(view.matrix[~masks[view.name]].any())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_live_weights_train_as_with_masks_multiplied_by_hand(make_toy: Callable[[], Toy], name: str) -> None:
    toy, twin = make_toy(), make_toy()
    masks = some_masks(toy)
    enforcer = Enforcer(toy.views(), wrapped(masks))
    optimizer, other = (OPTIMIZERS[name](model.parameters()) for model in (toy, twin))
    enforcer.mask_weights()
    train(toy, enforcer, optimizer, range(6))
    factors = {twin.first.weight: masks["first.weight"], twin.second.weight: masks["second.weight"].t()}
    for step in range(-1, 6):
        if step >= 0:
            backward(twin, step)
            for parameter, mask in factors.items():
                assert parameter.grad is not None
                parameter.grad *= mask
            other.step()
        for parameter, mask in factors.items():
            parameter.data *= mask
    for parameter, expected in zip(toy.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_a_weight_that_opens_again_starts_from_zero_moments(make_toy: Callable[[], Toy]) -> None:
    toy = make_toy()
    optimizer = OPTIMIZERS["adamw"](toy.parameters())
    first, second = some_masks(toy, 1), some_masks(toy, 2)
    enforcer = Enforcer(toy.views(), wrapped(first))
    for moments in (None, 7.0):  # once as it comes about, once with moments that something else left there
        enforcer.set_masks(wrapped(first), optimizer)
        enforcer.mask_weights()
        train(toy, enforcer, optimizer, range(3))
        if moments is not None:
            for view in toy.views().values():
                for moment in moments_of(optimizer, view).values():
                    moment.fill_(moments)
        enforcer.set_masks(wrapped(second), optimizer)
        for view in toy.views().values():
            stayed = first[view.name] & second[view.name]
            for moment in moments_of(optimizer, view).values():
                assert not bool(moment[~stayed].any())
                assert bool((moment[stayed] != 0).all())
    assert all(torch.equal(enforcer.mask(name).kept, kept) for name, kept in second.items())


def test_gradients_that_overflow_under_the_mask_become_zero(toy: Toy) -> None:
    masks = some_masks(toy)
    enforcer = Enforcer(toy.views(), wrapped(masks))
    for view in toy.views().values():
        view.parameter.grad = torch.full_like(view.parameter, float("inf"))
    enforcer.mask_gradients()
    for view in toy.views().values():
        assert view.gradient is not None
        assert torch.equal(view.gradient, torch.where(masks[view.name], float("inf"), 0.0))


def test_parameters_without_gradients_and_tensors_without_masks_are_left_alone(toy: Toy) -> None:
    before = toy.second.weight.detach().clone()
    enforcer = Enforcer(toy.views(), wrapped({"first.weight": torch.zeros(8, 6, dtype=torch.bool)}))
    enforcer.mask_gradients()
    enforcer.mask_weights()
    assert not bool(toy.first.weight.any())
    assert torch.equal(toy.second.weight, before)
    assert [name for name, mask in enforcer.masks.items() if mask.pruned] == ["first.weight"]
    enforcer.set_masks(wrapped({"first.weight": torch.ones(8, 6, dtype=torch.bool)}))
    assert not any(mask.pruned for mask in enforcer.masks.values())


def test_masks_come_back_from_a_checkpoint(make_toy: Callable[[], Toy], tmp_path: Path) -> None:
    toy = make_toy()
    enforcer = Enforcer(toy.views(), wrapped(some_masks(toy)))
    save_masks(enforcer.masks, tmp_path / "masks.safetensors", method="training")
    restored = Enforcer(make_toy().views(), wrapped(some_masks(toy, 5)))
    restored.set_masks(load_masks(tmp_path / "masks.safetensors").masks)
    assert all(mask.same(restored.masks[name]) for name, mask in enforcer.masks.items())


@pytest.mark.parametrize("transposed", [False, True])
def test_a_mask_lies_in_memory_like_its_weights(transposed: bool) -> None:
    stored = torch.randn(5, 7)
    matrix = stored.t() if transposed else stored  # [out, in]
    kept = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    mask = Mask(kept, like=matrix)
    assert mask._bits.stride() == matrix.stride()
    assert torch.equal(mask.kept, kept)
    assert (mask.weights, mask.pruned) == (35, int((~kept).sum()))
    assert mask.alive(matrix) == int((matrix[~kept] != 0).sum())
    mask.apply(matrix)
    assert torch.equal(matrix != 0, kept)
    assert mask.alive(matrix) == 0
    assert torch.equal(stored, matrix.t() if transposed else matrix)


def test_masks_that_do_not_fit_are_refused(toy: Toy) -> None:
    enforcer = Enforcer(toy.views())
    with pytest.raises(PruningError, match=r"'frist\.weight' is none of them\. Nearest: first\.weight"):
        enforcer.set_masks(wrapped({"frist.weight": torch.ones(8, 6, dtype=torch.bool)}))
    with pytest.raises(PruningError, match=r"second\.weight: .* the weight is \[4, 8\] and the mask \[8, 4\]"):
        enforcer.set_masks(wrapped({"second.weight": torch.ones(8, 4, dtype=torch.bool)}))


def test_tied_weights_have_one_mask(tiny_gpt2: Any) -> None:
    (view,) = select(tiny_gpt2, targets=["lm_head"]).values()
    twice = {view.name: view, "alias": WeightView("alias", view.parameter, view.module, False, None)}
    enforcer = Enforcer(twice, wrapped({view.name: view.matrix > 0}))
    enforcer.mask_weights()
    assert list(enforcer.masks) == [view.name]
    assert bool((tiny_gpt2.lm_head.weight >= 0).all())
    assert bool((tiny_gpt2.transformer.wte.weight >= 0).all())


def test_a_model_of_conv1d_layers_keeps_its_masks(tiny_gpt2: Any) -> None:
    views = block_matrices(tiny_gpt2)
    masks = {name: view.matrix.abs() > view.matrix.abs().median() for name, view in views.items()}
    enforcer = Enforcer(views, wrapped(masks))
    enforcer.mask_weights()
    optimizer = AdamW(tiny_gpt2.parameters(), lr=0.01)
    tokens = torch.arange(32).reshape(2, 16)
    for _ in range(3):
        optimizer.zero_grad()
        tiny_gpt2(input_ids=tokens, labels=tokens).loss.backward()
        enforcer.mask_gradients()
        optimizer.step()
        enforcer.mask_weights()
    assert all(torch.equal(view.matrix != 0, masks[name]) for name, view in views.items())
