from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.pruning import threshold
from prunegpt.pruning.bisection import check_finite, checked_together, keep_by_bisection
from prunegpt.pruning.threshold import global_masks, keep_largest, keep_largest_rows, zeros_for
from tests.pruning.reference import keep_by_sorting

# Few values, so that ties are common; both zeros, denormals, the ends of float32, and neighbours in its last bit.
VALUES = [
    0.0,
    -0.0,
    1.0,
    1.0000001,
    -1.0,
    2.5,
    -2.5,
    1e-45,
    -1e-45,
    3.4028234663852886e38,
    -3.4028234663852886e38,
    1e-3,
]
scores_of = st.sampled_from(VALUES) | st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def matrices(draw: st.DrawFn, rows: int | None = None) -> Tensor:
    shape = rows or draw(st.integers(1, 5)), draw(st.integers(1, 7))
    values = draw(st.lists(scores_of, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    matrix = torch.tensor(values, dtype=torch.float32).reshape(shape)
    return matrix.t().contiguous().t() if draw(st.booleans()) else matrix


@st.composite
def masks_of(draw: st.DrawFn, matrix: Tensor) -> Tensor | None:
    bits = draw(st.none() | st.lists(st.booleans(), min_size=matrix.numel(), max_size=matrix.numel()))
    return None if bits is None else torch.tensor(bits).reshape(matrix.shape)


@pytest.fixture(scope="module", params=["few", "many"], autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to find a threshold: a search among few scores, and histograms, which tests would be too small for."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "many":
            patch.setattr(threshold, "FEW", 0)
        yield


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_keep_largest_is_a_stable_sort(data: st.DataObject) -> None:
    scores = data.draw(matrices())
    mask = data.draw(masks_of(scores))
    zeros = data.draw(st.integers(0, scores.numel()))
    before = scores.clone()
    assert torch.equal(keep_largest(scores, zeros, mask=mask), keep_by_sorting(scores, zeros, mask))
    assert torch.equal(scores, before)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_rows_are_each_a_stable_sort(data: st.DataObject) -> None:
    scores = data.draw(matrices())
    mask = data.draw(masks_of(scores))
    zeros = data.draw(st.integers(0, scores.shape[1]))
    rows = range(scores.shape[0])
    expected = torch.stack([keep_by_sorting(scores[row], zeros, None if mask is None else mask[row]) for row in rows])
    assert torch.equal(keep_largest_rows(scores, zeros, mask=mask), expected)


def test_rows_without_numpy_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs: torch's kthvalue in place of numpy's partition."""
    scores = torch.randint(-3, 4, (6, 9), generator=torch.Generator().manual_seed(0)).float()
    expected = [keep_largest_rows(scores, zeros) for zeros in range(10)]
    monkeypatch.setattr(threshold, "kth_of_rows", lambda rows, k: rows.kthvalue(k, dim=1, keepdim=True).values)
    assert all(torch.equal(keep_largest_rows(scores, zeros), mask) for zeros, mask in enumerate(expected))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_global_masks_are_a_stable_sort_of_the_concatenation(data: st.DataObject) -> None:
    tensors = data.draw(st.lists(matrices(), min_size=1, max_size=4))
    held = [data.draw(masks_of(tensor)) for tensor in tensors]
    sparsity = data.draw(st.floats(0, 1))
    masks = {str(i): mask for i, mask in enumerate(held) if mask is not None}
    found = global_masks({str(i): tensor for i, tensor in enumerate(tensors)}, sparsity, masks=masks)
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    mask = torch.cat(
        [
            torch.ones(t.numel(), dtype=torch.bool) if m is None else m.flatten()
            for t, m in zip(tensors, held, strict=True)
        ]
    )
    expected = keep_by_sorting(joined, round(joined.numel() * sparsity), mask)
    assert torch.equal(torch.cat([kept.flatten() for kept in found.values()]), expected)
    assert [kept.shape for kept in found.values()] == [tensor.shape for tensor in tensors]
    zeros = round(joined.numel() * sparsity)
    if 0 < zeros < joined.numel():  # what an accelerator does, on tensors of the host
        halved = keep_by_bisection(tensors, zeros, held)
        assert torch.equal(torch.cat([kept.flatten() for kept in halved]), expected)


def test_on_the_host_no_check_is_put_off() -> None:
    with checked_together(), pytest.raises(PruningError, match="importance scores must be finite"):
        check_finite(torch.tensor([1.0, torch.nan]))


def test_many_chunks_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {str(i): torch.randn(31, 17, generator=torch.Generator().manual_seed(i)) for i in range(3)}
    masks = {"1": torch.rand(31, 17, generator=torch.Generator().manual_seed(9)) > 0.5}
    whole = global_masks(scores, 0.6, masks=masks)
    monkeypatch.setattr(threshold, "CHUNK", 100)
    parts = global_masks(scores, 0.6, masks=masks)
    assert all(torch.equal(whole[name], parts[name]) for name in scores)
    assert sum(int((~mask).sum()) for mask in whole.values()) == round(3 * 31 * 17 * 0.6)


def test_masks_keep_the_layout_of_transposed_scores() -> None:
    scores = torch.randn(4, 6).t()
    assert keep_largest(scores, 5).stride() == scores.stride()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scores_that_are_not_finite_are_refused(bad: float, sign: float) -> None:
    scores = torch.full((2, 3), sign)
    scores[1, 1] = bad
    for select in (
        lambda: keep_largest(scores, 2),
        lambda: keep_largest(scores, 2, mask=torch.ones(2, 3, dtype=torch.bool)),
        lambda: keep_largest_rows(scores, 2),
        lambda: global_masks({"a": torch.ones(3, 3), "b": scores}, 0.5),
    ):
        with pytest.raises(PruningError, match="importance scores must be finite; some are NaN or infinite"):
            select()


def test_sparsity_out_of_range_states_the_rule_and_the_likely_meaning() -> None:
    with pytest.raises(PruningError, match=r"between 0 and 1, got 90\. Did you mean 0\.9\?"):
        zeros_for(10, 90)
    with pytest.raises(PruningError, match=r"between 0 and 1, got -0\.1\.$"):
        zeros_for(10, -0.1)
    with pytest.raises(PruningError, match="between 0 and 1, got nan"):
        zeros_for(10, float("nan"))
