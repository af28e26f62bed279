"""oBERT against optimal brain surgery on the whole Fisher matrix in closed form."""

import pytest
import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.pruning.patterns import NOfM, Pattern, Unstructured
from prunegpt.pruning.solvers.obert import obert
from tests.pruning.solvers.layers import layer

OUT, IN, DAMPING = 3, 8, 0.1


def fisher_of(gradients: Tensor, block: int) -> Tensor:
    """λ·I + mean g·gᵀ over the flattened weight, cut to blocks within rows: float64 [out · in, out · in]."""
    flat = gradients.double().flatten(1)  # [samples, out · in]
    whole = flat.t() @ flat / flat.shape[0]  # [out · in, out · in]
    position = torch.arange(OUT * IN)
    together = (position // IN * 100 + position % IN // block)[:, None] == (
        position // IN * 100 + position % IN // block
    )[None]
    ridge = DAMPING * flat.square().mean()
    return whole * together + ridge * torch.eye(OUT * IN, dtype=torch.float64)


def surgery(weight: Tensor, fisher: Tensor, mask: Tensor) -> Tensor:
    """The minimum of ½ δᵀFδ with the pruned weights at zero, from its Karush-Kuhn-Tucker equations."""
    flat, pruned = weight.double().flatten(), (~mask).flatten().nonzero().squeeze(1)
    count, size = pruned.numel(), flat.numel()
    system = torch.zeros(size + count, size + count, dtype=torch.float64)
    system[:size, :size] = fisher
    system[size + torch.arange(count), pruned] = 1
    system[pruned, size + torch.arange(count)] = 1
    right = torch.cat([torch.zeros(size, dtype=torch.float64), -flat[pruned]])
    return (flat + torch.linalg.solve(system, right)[:size]).view_as(weight)


@pytest.mark.parametrize("samples", [3, 8, 12])  # fewer than inputs in a block: Woodbury; more: directly
@pytest.mark.parametrize("block", [4, 5, 8, 64])
@pytest.mark.parametrize("sparsity", [1 / 24, 0.5, 0.75])
def test_it_is_the_closed_form_of_optimal_brain_surgery(samples: int, block: int, sparsity: float) -> None:
    made = layer(OUT, IN)
    gradients = made.gradients[:samples]
    fisher = fisher_of(gradients, block)
    inverse = torch.linalg.inv(fisher)
    scores = (made.weight.double().flatten().square() / (2 * inverse.diagonal())).view(OUT, IN)
    expected_mask = Unstructured().select(scores.float(), sparsity)
    found = obert(
        made.weight,
        gradients=gradients,
        pattern=Unstructured(),
        sparsity=sparsity,
        damping=DAMPING,
        fisher_block=block,
    )
    assert torch.equal(found.mask, expected_mask)
    torch.testing.assert_close(found.weight.double(), surgery(made.weight, fisher, found.mask), rtol=1e-5, atol=1e-6)


def test_one_weight_costs_its_score_and_moves_the_others_by_the_formula_of_the_paper() -> None:
    made = layer(OUT, IN)
    fisher = fisher_of(made.gradients, 64)
    inverse = torch.linalg.inv(fisher)
    flat = made.weight.double().flatten()
    index = int((flat.square() / inverse.diagonal()).argmin())
    change = -flat[index] / inverse[index, index] * inverse[:, index]  # equation 4
    found = obert(made.weight, gradients=made.gradients, pattern=Unstructured(), sparsity=1 / 24, damping=DAMPING)
    torch.testing.assert_close(found.weight.double().flatten(), flat + change, rtol=1e-5, atol=1e-6)
    moved = found.weight.double().flatten() - flat
    assert float(moved @ fisher @ moved / 2) == pytest.approx(
        float(flat[index] ** 2 / (2 * inverse[index, index])), rel=1e-4
    )


def test_the_error_is_the_share_of_the_quadratic_model_without_damping() -> None:
    made = layer(OUT, IN)
    found = obert(made.weight, gradients=made.gradients, pattern=Unstructured(), sparsity=0.5, fisher_block=4)
    plain = fisher_of(made.gradients, 4) - DAMPING * made.gradients.double().square().mean() * torch.eye(OUT * IN)
    change, flat = (found.weight - made.weight).double().flatten(), made.weight.double().flatten()
    assert found.error == pytest.approx(float((change @ plain @ change) / (flat @ plain @ flat)), rel=1e-4)


def test_what_is_pruned_already_neither_moves_nor_informs() -> None:
    made = layer(OUT, IN)
    mask = torch.ones(OUT, IN, dtype=torch.bool)
    mask[:, ::2] = False
    loud = made.gradients.clone()
    loud[:, :, ::2] *= 100
    calm, shouted = (
        obert(made.weight, gradients=given * scale, pattern=Unstructured(), sparsity=0.75, mask=mask, damping=0.5)
        for given, scale in ((made.gradients * mask, 1), (loud * mask, 1))
    )
    assert torch.equal(calm.weight, shouted.weight)
    assert int((~calm.mask).sum()) == 18
    assert not bool((calm.mask & ~mask).any())


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer(7, 24)
    whole = obert(made.weight, gradients=made.gradients, pattern=NOfM(2, 4), fisher_block=10)
    monkeypatch.setattr("prunegpt.pruning.solvers.obert.CHUNK", 1)
    parts = obert(made.weight, gradients=made.gradients, pattern=NOfM(2, 4), fisher_block=10)
    assert torch.equal(whole.mask, parts.mask)
    torch.testing.assert_close(whole.weight, parts.weight)


def test_damping_that_had_to_rise_is_reported() -> None:
    made = layer(OUT, IN)
    gradients = torch.ones(12, 1, 1) * made.gradients[:1]  # one direction: F has rank one in each row
    found = obert(made.weight, gradients=gradients, pattern=Unstructured(), sparsity=0.5, damping=0.0)
    assert found.damping > 0
    assert found.notes == (f"damping raised from 0 to {found.damping:g} for the Fisher blocks",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_refused(value: float) -> None:
    made = layer(OUT, IN)
    with pytest.raises(PruningError, match=r"gradients must be finite; their mean square is"):
        obert(made.weight, gradients=made.gradients * value, pattern=Unstructured(), sparsity=0.5)


@pytest.mark.parametrize("samples", [3, 40])
def test_no_damping_at_all_is_raised_to_what_can_be_inverted(samples: int) -> None:
    made = layer(OUT, IN)
    gradients = torch.zeros(samples, OUT, IN)
    gradients[:, 0] = 1.0  # all other rows have a Fisher block of zeros
    found = obert(made.weight, gradients=gradients, pattern=Unstructured(), sparsity=0.5, damping=0.0)
    assert found.damping > 0
    assert bool(found.weight.isfinite().all())


def test_a_fisher_block_is_at_most_a_row() -> None:
    made = layer(OUT, IN)
    whole, larger = (
        obert(made.weight, gradients=made.gradients, pattern=Unstructured(), sparsity=0.5, fisher_block=size)
        for size in (IN, 10**9)
    )
    assert torch.equal(whole.weight, larger.weight)


@pytest.mark.parametrize("pattern", [Unstructured(), NOfM(2, 4)])
def test_a_layer_that_no_gradient_reaches_is_pruned_by_magnitude(pattern: Pattern) -> None:
    """The limit of small equal gradients: F is a multiple of the identity."""
    made = layer(OUT, IN)
    held = torch.rand(OUT, IN, generator=torch.Generator().manual_seed(3)) > 0.2
    found = obert(made.weight, gradients=made.gradients * 0.0, pattern=pattern, sparsity=0.5, mask=held)
    expected = pattern.select(made.weight.abs() * held, 0.5, mask=held)
    assert torch.equal(found.mask, expected)
    assert torch.equal(found.weight, made.weight * expected)
    assert found.notes == ("no gradient reaches this layer, so that its weights were chosen by magnitude",)
