"""The numbers of each criterion, against closed forms and gradients that autograd computes."""

import pytest
import torch
from torch import Generator

from prunegpt.pruning.criteria.base import Criterion
from prunegpt.pruning.criteria.magnitude import magnitude
from prunegpt.pruning.criteria.movement import movement, movement_increment
from prunegpt.pruning.criteria.random import random
from prunegpt.pruning.criteria.taylor import taylor
from prunegpt.pruning.criteria.wanda import wanda
from prunegpt.pruning.criteria.wandapp import wandapp


def test_magnitude_is_the_absolute_value() -> None:
    assert magnitude(torch.tensor([[-2.0, 0.5], [0.0, 1.0]])).tolist() == [[2.0, 0.5], [0.0, 1.0]]


def test_wanda_orders_a_row_by_the_output_change_of_dropping_one_weight() -> None:
    """|W_ij| · ||X_j|| is by how much the output of row i moves when that weight alone is dropped."""
    weight = torch.randn(4, 6, dtype=torch.float64)
    inputs = torch.randn(50, 6, dtype=torch.float64) * torch.rand(6, dtype=torch.float64) * 3
    scores = wanda(weight, input_norm=inputs.norm(dim=0))
    for row in range(4):
        for column in range(6):
            dropped = weight.clone()
            dropped[row, column] = 0.0
            change = ((inputs @ weight.t()) - (inputs @ dropped.t())).norm()
            assert float(scores[row, column]) == pytest.approx(float(change), rel=1e-5)


def test_wandapp_adds_the_gradient_of_the_layer_to_the_norm_of_the_input() -> None:
    """Over the windows: root mean squares of both, as the paper has it, times a number that all layers share."""
    weight = torch.randn(4, 6)
    inputs, gradients = torch.randn(5, 10, 6), torch.randn(5, 4, 6)  # [windows, length, in], [windows, out, in]
    given = {"input_norm": inputs.flatten(0, 1).norm(dim=0), "regional_gradient": gradients.norm(dim=0)}
    within = inputs.square().sum(dim=1).mean(dim=0).sqrt()  # [in]
    for alpha in (0.0, 0.5, 100.0):
        expected = (alpha * gradients.square().mean(dim=0).sqrt() + within) * weight.abs()  # [out, in]
        torch.testing.assert_close(wandapp(weight, **given, alpha=alpha) / 5**0.5, expected)
    assert torch.equal(wandapp(weight, **given), wandapp(weight, **given, alpha=100.0))
    assert torch.equal(wandapp(weight, **given, alpha=0.0), wanda(weight, input_norm=given["input_norm"]))


def test_movement_falls_where_gradient_descent_shrinks_a_weight() -> None:
    weight = torch.nn.Parameter(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    target = torch.tensor([[0.0, 0.0, 2.0, -2.0]])  # the first two have to shrink, the others to grow
    total = torch.zeros(1, 4)
    for _ in range(3):
        loss = (weight - target).square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        total += movement_increment(weight, gradient)
        weight.data -= 0.1 * gradient
    scores = movement(weight, movement=total)
    assert bool((scores[0, :2] < 0).all())
    assert bool((scores[0, 2:] > 0).all())
    assert bool((weight.abs()[0, :2] < 1).all())


def test_taylor_is_the_loss_that_pruning_costs_at_a_minimum() -> None:
    """Linear regression with unit noise, at its minimum: the Fisher diagonal is the Hessian's, the expansion exact."""
    generator = Generator().manual_seed(0)
    inputs = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    weight = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    noise = torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    targets = inputs @ weight.t() + noise
    residual = inputs @ weight.t() - targets  # [samples, 1]
    squared = (residual * inputs).square().mean(dim=0, keepdim=True)  # [1, in], of ½·residual²
    scores = taylor(weight, squared_gradient=squared)
    dense = 0.5 * residual.square().mean()
    for column in range(3):
        pruned = weight.clone()
        pruned[0, column] = 0.0
        cost = 0.5 * (inputs @ pruned.t() - targets).square().mean() - dense
        assert float(scores[0, column]) == pytest.approx(float(cost), rel=0.03)  # sampling noise of 200,000 draws


def test_random_is_uniform_and_follows_its_seed() -> None:
    weight = torch.empty(300, 300)
    scores = random(weight, generator=Generator().manual_seed(3))
    assert float(scores.min()) >= 0.0
    assert float(scores.max()) < 1.0
    assert float(scores.mean()) == pytest.approx(0.5, abs=0.01)
    assert not torch.equal(scores, random(weight, generator=Generator().manual_seed(4)))


def test_a_criterion_may_not_need_what_nobody_gives() -> None:
    with pytest.raises(ValueError, match=r"may need .*; 'odd' asks for \['hessian'\]"):
        Criterion(name="odd", needs=frozenset({"hessian"}), score=magnitude)
