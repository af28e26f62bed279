import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.pruning.patterns import Block, NOfM, Pattern, Unstructured, parse_pattern
from tests.pruning.reference import keep_by_sorting

sparsities = st.floats(0, 1)


def integers(rows: int, columns: int, seed: int) -> Tensor:
    """Small integers: many ties, exact sums."""
    return torch.randint(-4, 5, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


def zeros(mask: Tensor) -> int:
    return int((~mask).sum())


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", Unstructured()),
        (" 2:4 ", NOfM(2, 4)),
        ("1:4", NOfM(1, 4)),
        ("[4, 4]", Block(4, 4)),
        ("block:1,16", Block(1, 16)),
    ],
)
def test_names_are_read_and_written(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text) == pattern
    assert parse_pattern(pattern.name) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("diagonal", r"pattern must be unstructured, N:M .*, got 'diagonal'"),
        ("4:4", r"0 < N < M must hold, got 4:4"),
        ("0:4", r"0 < N < M must hold, got 0:4"),
        ("[0, 4]", r"block sides must be at least 1, got \[0, 4\]"),
    ],
)
def test_names_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        parse_pattern(text)


@given(st.integers(1, 6), st.integers(1, 9), sparsities, st.integers(0, 99), st.booleans())
@settings(deadline=None)
def test_unstructured_counts_are_exact(rows: int, columns: int, sparsity: float, seed: int, rowwise: bool) -> None:
    scores = integers(rows, columns, seed)
    mask = Unstructured().select(scores, sparsity, rowwise=rowwise)
    if rowwise:
        assert (~mask).sum(dim=1).tolist() == [round(columns * sparsity)] * rows
    else:
        assert torch.equal(mask, keep_by_sorting(scores, round(rows * columns * sparsity)))


@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (5, 16)]),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_n_of_m_keeps_the_n_largest_of_every_group_of_inputs(
    rows: int, groups: int, pair: tuple[int, int], seed: int
) -> None:
    n, m = pair
    scores = integers(rows, groups * m, seed)
    mask = NOfM(n, m).select(scores)
    for row in range(rows):
        for group in range(groups):
            part = slice(group * m, (group + 1) * m)
            assert torch.equal(mask[row, part], keep_by_sorting(scores[row, part], m - n))
    NOfM(n, m).check(mask)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 99), st.booleans())
@settings(deadline=None)
def test_n_of_m_grows_into_its_pattern(levels: list[float], seed: int, rowwise: bool) -> None:
    """Exact counts on the way, nothing given back, and the full pattern at the end."""
    pattern = NOfM(2, 4)
    scores = torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(6, 16, dtype=torch.bool)
    for level in sorted(levels):
        sparsity = level * 0.5
        grown = pattern.select(scores, sparsity, mask=mask, rowwise=rowwise)
        expected = 6 * round(16 * sparsity) if rowwise else round(96 * sparsity)
        assert zeros(grown) == max(expected, zeros(mask))
        assert not bool((grown & ~mask).any())
        mask = grown
    final = pattern.select(scores, 0.5, mask=mask, rowwise=rowwise)
    assert zeros(final) == 48
    assert torch.equal(final, pattern.select(scores))
    pattern.check(final)


def test_n_of_m_refuses_what_it_cannot_be() -> None:
    with pytest.raises(PruningError, match=r"2:4 reaches a sparsity of 0\.5 at most; 0\.9 was asked for"):
        NOfM(2, 4).select(torch.ones(2, 4), 0.9)
    with pytest.raises(PruningError, match=r"input axis divisible by 4; the matrix is \[4, 6\]"):
        NOfM(2, 4).select(torch.ones(4, 6))
    with pytest.raises(PruningError, match="scores must be finite"):
        NOfM(2, 4).select(torch.tensor([[1.0, float("nan"), 2.0, 3.0]]))
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[:, ::2] = False
    mask[1, 4] = True
    with pytest.raises(
        PruningError, match=r"2:4 keeps at most 2 of 4 .* 1 groups keep more; the first is row 1, inputs 4 to 7"
    ):
        NOfM(2, 4).check(mask)


@pytest.mark.parametrize(("rows", "columns"), [(8, 12), (7, 10), (3, 3), (9, 4)])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_blocks_are_the_lowest_tiles(rows: int, columns: int, sparsity: float) -> None:
    pattern = Block(4, 3)
    scores = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    corners = [(top, left) for top in range(0, rows, 4) for left in range(0, columns, 3)]
    means = torch.stack([scores[top : top + 4, left : left + 3].mean() for top, left in corners])
    expected = torch.ones(rows, columns, dtype=torch.bool)
    for kept, (top, left) in zip(keep_by_sorting(means, round(len(corners) * sparsity)), corners, strict=True):
        expected[top : top + 4, left : left + 3] = kept
    mask = pattern.select(scores, sparsity)
    assert torch.equal(mask, expected)
    pattern.check(mask)


def test_blocks_by_row_prune_each_row_of_tiles_alike() -> None:
    mask = Block(2, 2).select(integers(8, 8, 0), 0.5, rowwise=True)
    assert (~mask).reshape(4, 2, 8).sum(dim=(1, 2)).tolist() == [8] * 4


def test_a_block_that_is_broken_is_found() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2, 3] = False
    with pytest.raises(PruningError, match=r"\[2, 2\] keeps or prunes a tile as one; 1 weights .* row 2, input 3"):
        Block(2, 2).check(mask)


@pytest.mark.parametrize("pattern", [Unstructured(), NOfM(2, 4), Block(2, 4), Block(3, 5)])
@pytest.mark.parametrize("rowwise", [False, True])
@given(seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_what_is_pruned_stays_pruned(pattern: Pattern, rowwise: bool, seed: int) -> None:
    scores = integers(6, 8, seed)
    mask = torch.rand(6, 8, generator=torch.Generator().manual_seed(seed)) > 0.3
    grown = pattern.select(scores, 0.5, rowwise=rowwise, mask=mask)
    assert not bool((grown & ~mask).any())
    if pattern == Unstructured() and not rowwise:
        assert zeros(grown) == max(24, zeros(mask))


def test_a_pattern_that_fixes_no_sparsity_needs_one() -> None:
    with pytest.raises(PruningError, match="'unstructured' needs a sparsity between 0 and 1, got none"):
        Unstructured().select(torch.ones(2, 2))
