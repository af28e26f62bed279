"""Every refinement: as many zeros in each row and group, held weights pruned, and what its paper says, in loops."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from prunegpt.errors import Interrupted, PruningError
from prunegpt.lm.views import block_matrices
from prunegpt.pruning.oneshot import SolvedLayers, prune_oneshot
from prunegpt.pruning.patterns import NOfM, Pattern, Unstructured
from prunegpt.pruning.refining.base import Refinement
from prunegpt.pruning.refining.dsnot import dsnot
from prunegpt.pruning.refining.swaps import swaps
from prunegpt.registry import ALLOCATIONS, CRITERIA, REFINEMENTS, SOLVERS
from prunegpt.spec.pruning import prune_problems
from prunegpt.spec.repair import RepairSpec
from prunegpt.spec.schema import GradualSpec, PruneSpec
from tests.pruning.solvers.layers import Layer, layer
from tests.support.stopped import same, stopping

NAMES = REFINEMENTS.names()
METHODS = [name for name in CRITERIA.names() if not CRITERIA.entry(name).only_in_training]
OUT, IN = 12, 48
CASES: list[tuple[Pattern, float | None]] = [
    *((Unstructured(), sparsity) for sparsity in (0.0, 0.3, 0.5, 0.9, 1.0)),
    *((NOfM(kept, group), None) for kept, group in ((2, 4), (1, 4), (5, 8))),
]
assert NAMES


def known(made: Layer) -> dict[str, Tensor]:
    inputs = made.inputs
    return {
        "gram": made.gram,
        "input_norm": inputs.norm(dim=0),
        "input_mean": inputs.mean(dim=0),
        "input_variance": inputs.var(dim=0, unbiased=False),
    }


def shifted(out: int, width: int, seed: int = 0) -> Layer:
    """A layer whose inputs have means, as those behind an activation function."""
    made = layer(out, width, seed=seed)
    return Layer(made.weight, made.inputs + made.inputs.std(dim=0))


def refined(
    name: str, made: Layer, mask: Tensor, pattern: Pattern, held: Tensor | None = None, **options: Any
) -> Tensor:
    refinement = Refinement(name, options)
    given = {need: value for need, value in known(made).items() if need in refinement.needs}
    return refinement(made.weight, mask, pattern=pattern, held=held, **given)


def errors(weight: Tensor, mask: Tensor, gram: Tensor) -> Tensor:
    """What each row loses of its output, float64 [out]."""
    lost = weight.double() * ~mask  # [out, in]
    return ((lost @ gram.double()) * lost).sum(dim=1)


def group_of(pattern: Pattern, width: int) -> int:
    return pattern.group if isinstance(pattern, NOfM) else width


@pytest.mark.parametrize(("pattern", "sparsity"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_rows_and_groups_keep_as_many(name: str, pattern: Pattern, sparsity: float | None) -> None:
    made = shifted(OUT, IN)
    mask = pattern.select(made.weight.abs(), sparsity)  # rows differ
    before = (made.weight.clone(), mask.clone())
    found = refined(name, made, mask, pattern)
    assert (found.shape, found.dtype) == (mask.shape, torch.bool)
    pattern.check(found)
    parts = (one.view(OUT, -1, group_of(pattern, IN)).sum(dim=2) for one in (found, mask))
    assert torch.equal(*parts)
    assert torch.equal(before[0], made.weight)
    assert torch.equal(before[1], mask)
    assert torch.equal(found, refined(name, made, mask, pattern))
    if sparsity in (0.5, None):
        assert not torch.equal(found, mask)


@pytest.mark.parametrize("pattern", [Unstructured(), NOfM(2, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_held_stays_pruned(name: str, pattern: Pattern) -> None:
    made = shifted(OUT, IN)
    held = torch.rand(OUT, IN, generator=Generator().manual_seed(1)) < 0.8
    mask = pattern.select(made.weight.abs(), 0.5, mask=held)
    found = refined(name, made, mask, pattern, held)
    assert not bool((found & ~held).any())
    assert torch.equal(found.sum(dim=1), mask.sum(dim=1))
    zeroed = Layer(made.weight * held, made.inputs)
    assert torch.equal(found, refined(name, zeroed, mask, pattern, held))


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_one_another(name: str) -> None:
    made = shifted(OUT, IN)
    mask = Unstructured().select(made.weight.abs(), 0.5)
    found = refined(name, made, mask, Unstructured())
    order = torch.randperm(OUT, generator=Generator().manual_seed(2))
    other = refined(name, Layer(made.weight[order], made.inputs), mask[order], Unstructured())
    assert torch.equal(other, found[order])


@pytest.mark.parametrize("name", NAMES)
def test_dead_inputs_and_numbers_that_are_not_finite(name: str) -> None:
    made = shifted(OUT, IN)
    made.inputs[:, [0, 7]] = 0
    mask = Unstructured().select(made.weight.abs(), 0.5)
    found = refined(name, made, mask, Unstructured())
    assert torch.equal(found.sum(dim=1), mask.sum(dim=1))
    made.inputs[0, 3] = torch.nan
    with pytest.raises(PruningError, match="must be finite"):
        refined(name, made, mask, Unstructured())


# -- swaps -------------------------------------------------------------------------------------------------------------


def best_swap(weight: Tensor, mask: Tensor, gram: Tensor, group: int) -> tuple[float, int, int]:
    """By trying all pairs of a row: the error after the best one, and which it is."""
    found = []
    for p in mask.nonzero().flatten().tolist():
        for u in (~mask).nonzero().flatten().tolist():
            if p // group == u // group:
                other = mask.clone()
                other[p], other[u] = False, True
                found.append((float(errors(weight[None], other[None], gram)), p, u))
    return min(found)


@pytest.mark.parametrize("pattern", [Unstructured(), NOfM(2, 4), NOfM(1, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_swaps_are_those_of_brute_force(pattern: Pattern, seed: int) -> None:
    made, group = layer(8, 8, seed=seed), group_of(pattern, 8)
    mask = pattern.select(made.weight.abs(), 0.5 if group == 8 else None, rowwise=True)
    expected = mask.clone()
    for row in range(8):
        while True:
            before = float(errors(made.weight[row : row + 1], expected[row : row + 1], made.gram))
            after, p, u = best_swap(made.weight[row], expected[row], made.gram, group)
            if after >= before * (1 - 1e-6):
                break
            expected[row, p], expected[row, u] = False, True
    found = swaps(made.weight, mask, gram=made.gram, group=group)
    assert torch.equal(found, expected)
    assert not torch.equal(found, mask)


@pytest.mark.parametrize(("pattern", "sparsity"), CASES)
def test_swaps_lower_the_error_until_no_pair_does(pattern: Pattern, sparsity: float | None) -> None:
    made, group = shifted(OUT, 40), group_of(pattern, 40)
    mask = pattern.select(made.weight.abs(), sparsity, rowwise=True)
    levels = [errors(made.weight, mask, made.gram)]
    for most in (1, 3, 1000):
        found = swaps(made.weight, mask, gram=made.gram, group=group, max_swaps=most)
        assert int((found & ~mask).sum(dim=1).max()) <= most
        levels.append(errors(made.weight, found, made.gram))
        assert bool((levels[-1] <= levels[-2] * (1 + 1e-6)).all())
    if sparsity in (0.3, 0.5, 0.9, None):
        assert float(levels[-1].sum()) < 0.95 * float(levels[0].sum())
        for row in range(OUT):
            after = best_swap(made.weight[row], found[row], made.gram, group)[0]
            assert after >= float(levels[-1][row]) * (1 - 1e-4)


@pytest.mark.parametrize("group", [4, 64])
def test_the_rows_that_are_looked_at_together_do_not_matter(monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    made = shifted(20, 64)
    pattern: Pattern = Unstructured() if group == 64 else NOfM(2, 4)
    mask = pattern.select(made.weight.abs(), 0.5)
    found = swaps(made.weight, mask, gram=made.gram, group=group)
    monkeypatch.setattr("prunegpt.pruning.refining.swaps.PAIRS", 1)
    assert torch.equal(swaps(made.weight, mask, gram=made.gram, group=group), found)


def test_equal_weights_on_equal_inputs_stay_where_they_are() -> None:
    gram, weight = torch.eye(8), torch.ones(3, 8)
    mask = torch.arange(8).expand(3, 8) >= 4
    for group in (4, 8):
        assert torch.equal(swaps(weight, mask, gram=gram, group=group), mask)


# -- DSnoT -------------------------------------------------------------------------------------------------------------


def plain_dsnot(made: Layer, mask: Tensor, group: int, cycles: int) -> Tensor:
    """The cycles of one row after the other, by sorting lists."""
    kept = mask.clone()
    mean, variance, norm = (known(made)[f"input_{what}"].tolist() for what in ("mean", "variance", "norm"))
    for row, weights in enumerate(made.weight.tolist()):
        share = [w * m for w, m in zip(weights, mean, strict=True)]
        for _ in range(cycles):
            now = kept[row].tolist()
            lacking = sum(one for one, k in zip(share, now, strict=True) if not k)
            sign = 1 if lacking > 0 else -1
            falls = [j for j, k in enumerate(now) if k and sign * share[j] < 0]
            grows = [
                i
                for i, k in enumerate(now)
                if not k and sign * share[i] > 0 and any(j // group == i // group for j in falls)
            ]
            if not grows:
                break
            i = max(grows, key=lambda i: sign * share[i] / variance[i])
            j = min((j for j in falls if j // group == i // group), key=lambda j: abs(weights[j]) * norm[j])
            if abs(lacking - share[i] + share[j]) >= abs(lacking):
                break
            kept[row, i], kept[row, j] = True, False
    return kept


@pytest.mark.parametrize(("pattern", "cycles"), [(Unstructured(), 1), (Unstructured(), 50), (NOfM(2, 4), 50)])
def test_dsnot_is_the_plain_loop(pattern: Pattern, cycles: int) -> None:
    made, group = shifted(OUT, IN), group_of(pattern, IN)
    mask = pattern.select(made.weight.abs(), 0.5 if group == IN else None, rowwise=True)
    given = {need: value for need, value in known(made).items() if need != "gram"}
    found = dsnot(made.weight, mask, **given, group=group, cycles=cycles)
    assert torch.equal(found, plain_dsnot(made, mask, group, cycles))
    before, after = ((made.weight * ~one @ known(made)["input_mean"]).abs() for one in (mask, found))
    assert bool((after <= before).all())
    assert float(after.sum()) < float(before.sum())


# -- in one-shot pruning -----------------------------------------------------------------------------------------------


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(0, 128, (6, 16), generator=Generator().manual_seed(0))  # [windows, length]


def pruned(model: Any, windows: Tensor, refine: str | None, **given: Any) -> Any:
    twin = copy.deepcopy(model)
    given = {"method": "magnitude", **given} | ({} if "pattern" in given else {"sparsity": 0.5})
    refinement = Refinement(refine) if refine else None
    return twin, prune_oneshot(twin, block_matrices(twin), calibration=windows, refine=refinement, **given)


@pytest.mark.parametrize("given", [{}, {"pattern": "2:4"}, {"allocation": "row"}, {"repair": RepairSpec(epochs=1)}])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("refine", NAMES)
def test_every_method_that_chooses_masks_is_refined_and_resumes_to_the_same_bits(
    tiny_llama: Any, windows: Tensor, tmp_path: Path, refine: str, method: str, given: dict[str, Any]
) -> None:
    plain = pruned(tiny_llama, windows, None, method=method, **given)[1]
    expected = pruned(tiny_llama, windows, refine, method=method, **given)
    for name, mask in expected[1].masks.items():
        assert torch.equal(mask.sum(), plain.masks[name].sum())
    assert any(not torch.equal(mask, plain.masks[name]) for name, mask in expected[1].masks.items())
    solved = SolvedLayers(tmp_path, every=0)
    with pytest.raises(Interrupted):
        pruned(tiny_llama, windows, refine, method=method, **given, solved=solved, stop=stopping(9))
    assert same(expected, pruned(tiny_llama, windows, refine, method=method, **given, solved=SolvedLayers(tmp_path)))


def test_statistics_that_are_not_needed_are_not_summed(tiny_gpt2: Any, windows: Tensor) -> None:
    """A layer's error is known where there is a Gram matrix."""
    for name in NAMES:
        row = pruned(tiny_gpt2, windows, name)[1].rows[0]
        assert (row.error is not None) == ("gram" in REFINEMENTS.entry(name).needs)


def test_calibration_windows_that_are_run_together_do_not_matter(tiny_llama: Any, windows: Tensor) -> None:
    found = [pruned(tiny_llama, windows, "swaps", micro_batch=size)[1].masks for size in (1, 6)]
    differ = sum(int((found[0][name] != found[1][name]).sum()) for name in found[0])
    assert differ <= 0.01 * sum(mask.numel() for mask in found[0].values())  # rounding may decide between equals


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        name: ({"method": name, "sparsity": 0.5}, rf"{name} is a solver, which writes the weights that it keeps\. Use")
        for name in SOLVERS.names()
    },
    "global": ({"method": "magnitude", "sparsity": 0.5, "allocation": "global"}, "compares all layers at once. Use "),
    "block": ({"method": "magnitude", "sparsity": 0.5, "pattern": "[4, 4]"}, r"got \[4, 4\]\. Use pattern"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("refine", NAMES)
def test_what_does_not_go_with_it(tiny_gpt2: Any, windows: Tensor, refine: str, case: str) -> None:
    given, told = REFUSED[case]
    problems = prune_problems(PruneSpec(**given, refine=refine))
    with pytest.raises(PruningError, match=told):
        raise PruningError(dict(problems)["refine"])
    with pytest.raises(PruningError, match=told):
        prune_oneshot(tiny_gpt2, block_matrices(tiny_gpt2), **given, calibration=windows, refine=Refinement(refine))


def test_it_needs_calibration_and_a_prune_stage(tiny_gpt2: Any) -> None:
    with pytest.raises(ValueError, match="refine belongs to a prune stage"):
        GradualSpec(method="magnitude", sparsity=0.5, refine="swaps")
    with pytest.raises(PruningError, match="refine needs activations or gradients; no calibration windows"):
        prune_oneshot(
            tiny_gpt2, block_matrices(tiny_gpt2), method="magnitude", sparsity=0.5, refine=Refinement("swaps")
        )
    assert "options.x" in dict(prune_problems(PruneSpec(sparsity=0.5, refine="swaps", options={"x": 1})))


@pytest.mark.parametrize(
    "allocation", [name for name in ALLOCATIONS.builtin_names() if name not in ("explicit", "global")]
)
def test_every_allocation_by_layer_goes_with_it(allocation: str) -> None:
    spec = PruneSpec(method="wanda", sparsity=0.5, allocation=allocation, refine="swaps", options={"max_swaps": 5})
    assert "refine" not in dict(prune_problems(spec))
    assert "options.max_swaps" not in dict(prune_problems(spec))
