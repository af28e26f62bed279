"""ADMM against exhaustive search, exact least squares, and SparseGPT."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from prunegpt.pruning.criteria.magnitude import MAGNITUDE
from prunegpt.pruning.criteria.wanda import wanda
from prunegpt.pruning.patterns import NOfM, Pattern, Unstructured
from prunegpt.pruning.solvers.admm import admm, spectrum
from prunegpt.pruning.solvers.base import reconstruction_error
from prunegpt.pruning.solvers.sparsegpt import sparsegpt
from tests.pruning.solvers.layers import best_on_support, damped, layer

CASES = [(Unstructured(), 0.5), (Unstructured(), 0.6), (Unstructured(), 0.7), (Unstructured(), 0.9), (NOfM(2, 4), None)]


def test_the_spectrum_is_that_of_the_scaled_damped_gram() -> None:
    gram = layer(4, 16).gram
    found = spectrum(gram, damping=0.01)
    hessian = damped(gram, 0.01) / gram.diagonal().double().mean()
    scale = hessian.diagonal().sqrt()
    torch.testing.assert_close(found.matrix.double(), hessian / scale / scale.unsqueeze(1), rtol=1e-4, atol=1e-5)
    rebuilt = (found.vectors * found.values) @ found.vectors.t()
    torch.testing.assert_close(rebuilt, found.matrix, rtol=1e-4, atol=1e-5)


def test_an_input_that_outshouts_all_others_needs_no_more_damping() -> None:
    made = layer(8, 256, tokens=64)
    made.inputs[:, 3] = 1e4 * (1 + made.inputs[:, 3])
    found = spectrum(made.gram, damping=0.01)
    assert (found.damping, found.notes) == (0.01, ())
    assert float(found.values.min()) > 0
    solution = admm(made.weight, gram=made.gram, pattern=Unstructured(), sparsity=0.5, factor=found)
    assert solution.error < sparsegpt(made.weight, gram=made.gram, pattern=Unstructured(), sparsity=0.5).error


@pytest.mark.parametrize(("pattern", "sparsity"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_kept_weights_are_the_exact_least_squares_on_the_mask(
    pattern: Pattern, sparsity: float | None, seed: int
) -> None:
    made = layer(12, 32, seed=seed)
    found = admm(
        made.weight,
        gram=made.gram,
        pattern=pattern,
        sparsity=sparsity,
        refine_iterations=500,
        refine_tolerance=1e-6,
    )
    expected = best_on_support(made.weight, damped(made.gram, 0.01), found.mask)
    torch.testing.assert_close(found.weight.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("out", "width"), [(48, 64), (64, 192)])
@pytest.mark.parametrize(("pattern", "sparsity"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_methods_rank_as_they_should(
    pattern: Pattern, sparsity: float | None, out: int, width: int, seed: int
) -> None:
    made = layer(out, width, seed=seed)
    norm = made.gram.diagonal().sqrt()
    magnitude = pattern.select(MAGNITUDE.score(made.weight), sparsity)
    by_wanda = pattern.select(wanda(made.weight, input_norm=norm), sparsity, rowwise=True)
    errors = [
        admm(made.weight, gram=made.gram, pattern=pattern, sparsity=sparsity).error,
        sparsegpt(made.weight, gram=made.gram, pattern=pattern, sparsity=sparsity).error,
        reconstruction_error(made.weight * by_wanda, made.weight, made.gram),
        reconstruction_error(made.weight * magnitude, made.weight, made.gram),
    ]
    assert errors == sorted(errors)
    assert len(set(errors)) == 4


def test_it_is_never_better_than_the_best_of_all_masks_and_mostly_finds_it() -> None:
    ratios = []
    for seed in range(12):
        made = layer(1, 10, seed=seed)
        hessian = damped(made.gram, 0.01)
        masks = []
        for kept in combinations(range(10), 4):
            masks.append(torch.zeros(1, 10, dtype=torch.bool))
            masks[-1][0, list(kept)] = True
        best = min(_loss(best_on_support(made.weight, hessian, mask), made.weight, hessian) for mask in masks)
        found = admm(made.weight, gram=made.gram, pattern=Unstructured(), sparsity=0.6, refine_tolerance=1e-6)
        ratios.append(_loss(found.weight, made.weight, hessian) / best)
    assert min(ratios) > 1 - 1e-4
    assert sum(ratio < 1 + 1e-4 for ratio in ratios) >= 7


def _loss(weight: Tensor, original: Tensor, hessian: Tensor) -> float:
    change = weight.double() - original.double()
    return float((change @ hessian * change).sum())


def test_a_mask_is_only_ever_made_sparser() -> None:
    made = layer(16, 64)
    first = admm(made.weight, gram=made.gram, pattern=Unstructured(), sparsity=0.5)
    more = admm(first.weight, gram=made.gram, pattern=Unstructured(), sparsity=0.7, mask=first.mask)
    assert not bool((more.mask & ~first.mask).any())
    assert int((~more.mask).sum()) == round(16 * 64 * 0.7)
