from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.errors import PruningError
from prunegpt.pruning.allocation.arithmetic import arithmetic


@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=12),
    sparsity=st.floats(0, 1),
    step=st.floats(-0.2, 0.2),
)
@settings(deadline=None)
def test_the_mean_is_the_sparsity_and_layers_follow_the_step(sizes: list[int], sparsity: float, step: float) -> None:
    names = {str(block): size for block, size in enumerate(sizes)}
    found = list(arithmetic(names, sparsity, blocks={name: int(name) for name in names}, step=step).values())
    mean = sum(size * value for size, value in zip(sizes, found, strict=True)) / sum(sizes)
    assert mean == pytest.approx(sparsity, abs=1e-9)
    for before, after in pairwise(found):
        assert 0 <= after <= 1
        inside = 0 < before < 1 and 0 < after < 1
        assert after - before == pytest.approx(step, abs=1e-9) if inside else (after - before) * step >= 0


def test_it_is_the_papers_formula_for_layers_of_one_size() -> None:
    layers, sparsity, step = 30, 0.6, 0.01
    names = [f"{block}.w" for block in range(layers)]
    found = arithmetic(dict.fromkeys(names, 7), sparsity, blocks={name: int(name[:-2]) for name in names}, step=step)
    paper = [sparsity - step * (layers - 1) / 2 + step * block for block in range(layers)]
    assert list(found.values()) == pytest.approx(paper, abs=1e-12)


def test_tensors_of_no_block_take_the_common_sparsity() -> None:
    found = arithmetic({"wte": 9, "a": 5, "b": 5}, 0.5, blocks={"wte": None, "a": 3, "b": 8}, step=0.1)
    assert found == pytest.approx({"wte": 0.5, "a": 0.45, "b": 0.55})
    with pytest.raises(PruningError, match="between 0 and 1"):
        arithmetic({"a": 1}, 1.5, blocks={"a": 0})
