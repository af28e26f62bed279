import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.errors import PruningError
from prunegpt.pruning.allocation.owl import outlier_ratio, owl


def test_outliers_are_counted_against_the_mean_of_the_whole_block() -> None:
    small, large = torch.ones(2, 5), torch.ones(2, 5)
    large[0, 0] = 41.0  # the mean of the block is 60 / 20 = 3
    assert outlier_ratio([small, large], multiple=5.0) == 1 / 20
    assert outlier_ratio([small, large], multiple=14.0) == 0.0
    assert outlier_ratio([small], multiple=5.0) == 0.0


@given(
    ratios=st.lists(st.floats(0, 0.2), min_size=1, max_size=8),
    sparsity=st.floats(0, 1),
    limit=st.floats(0, 0.3),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_the_mean_is_the_sparsity_and_no_block_leaves_the_limits(
    ratios: list[float], sparsity: float, limit: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        f"{block}.{i}": int(torch.randint(1, 500, (), generator=generator))
        for block in range(len(ratios))
        for i in "ab"
    }
    blocks = {name: int(name.split(".")[0]) for name in sizes}
    found = owl(sizes, sparsity, outlier_ratios=dict(enumerate(ratios)), blocks=blocks, limit=limit)
    mean = sum(found[name] * size for name, size in sizes.items()) / sum(sizes.values())
    assert mean == pytest.approx(sparsity, abs=1e-12)
    for name, value in found.items():
        assert max(0.0, sparsity - limit) - 1e-12 <= value <= min(1.0, sparsity + limit) + 1e-12
        for other, another in found.items():
            if ratios[blocks[name]] > ratios[blocks[other]]:
                assert value <= another


def of_equal_blocks(ratios: list[float], sparsity: float) -> list[float]:
    names = [str(block) for block in range(len(ratios))]
    found = owl(
        dict.fromkeys(names, 100),
        sparsity,
        outlier_ratios=dict(enumerate(ratios)),
        blocks={name: int(name) for name in names},
        limit=0.08,
    )
    return [found[name] for name in names]


def by_the_paper(ratios: list[float], sparsity: float) -> list[float]:
    """Density = scaled ratio - mean of the scaled ratios + 1 - sparsity, for blocks of one size; nothing is clamped."""
    scaled = [(ratio - min(ratios)) / (max(ratios) - min(ratios)) * 0.16 for ratio in ratios]
    return [sparsity - value + sum(scaled) / len(scaled) for value in scaled]


def test_it_is_the_papers_formula_where_nothing_is_clamped() -> None:
    ratios = [0.01, 0.02, 0.05, 0.04, 0.03]
    assert of_equal_blocks(ratios, 0.7) == pytest.approx(by_the_paper(ratios, 0.7), abs=1e-12)


def test_a_block_beyond_the_limit_is_clamped_and_the_others_move_together() -> None:
    ratios = [0.01, 0.02, 0.03, 0.05, 0.02]
    paper = by_the_paper(ratios, 0.7)
    assert paper[3] < 0.62
    found = of_equal_blocks(ratios, 0.7)
    assert found[3] == pytest.approx(0.62, abs=1e-12)
    moved = [found[block] - paper[block] for block in (0, 1, 2, 4)]
    assert moved == pytest.approx([(paper[3] - 0.62) / 4] * 4, abs=1e-12)


def test_tensors_of_no_block_take_the_common_sparsity() -> None:
    found = owl(
        {"wte": 10, "a": 10, "b": 10}, 0.5, outlier_ratios={0: 0.1, 1: 0.2}, blocks={"wte": None, "a": 0, "b": 1}
    )
    assert found["wte"] == 0.5
    assert found["a"] == pytest.approx(0.58)
    assert found["b"] == pytest.approx(0.42)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(PruningError, match=r"blocks \[1\] are missing"):
        owl({"a": 1, "b": 1}, 0.5, outlier_ratios={0: 0.1}, blocks={"a": 0, "b": 1})
