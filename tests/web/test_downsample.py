"""Fewer points, the same extremes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunegpt.report.plots import extremes

VALUES = st.lists(
    st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")), st.just(float("inf"))), min_size=1, max_size=400
)


@given(VALUES, st.integers(5, 60))
def test_extremes_ends_and_order_stay(values: list[float], count: int) -> None:
    given_values = np.array(values)
    kept = extremes(given_values, count)
    assert len(kept) <= max(count, 5)
    assert len(kept) == len(set(kept.tolist()))
    assert sorted(kept.tolist()) == kept.tolist()
    assert {0, len(values) - 1} <= set(kept.tolist())
    finite = given_values[np.isfinite(given_values)]
    shown = given_values[kept]
    if len(finite):
        assert shown[np.isfinite(shown)].min() == finite.min()
        assert shown[np.isfinite(shown)].max() == finite.max()
    assert np.isfinite(given_values).all() == np.isfinite(shown).all()


@given(VALUES, st.integers(5, 60))
def test_every_stretch_keeps_its_own_extremes(values: list[float], count: int) -> None:
    given_values = np.array(values)
    if len(values) <= count:
        return
    kept = set(extremes(given_values, count).tolist())
    buckets = (count - 2) // 3
    edges = np.linspace(0, len(values), buckets + 1).astype(int)
    for start, end in itertools.pairwise(edges):
        inside = [index for index in range(start, end) if np.isfinite(values[index])]
        if inside:
            assert min(values[index] for index in inside) in {values[index] for index in kept & set(inside)}
            assert max(values[index] for index in inside) in {values[index] for index in kept & set(inside)}


def test_few_points_are_all_kept() -> None:
    assert extremes(np.arange(10.0), 10).tolist() == list(range(10))
    assert extremes(np.empty(0), 10).tolist() == []


@pytest.mark.parametrize("spike", [17, 50_000, 99_998])
def test_a_single_spike_in_a_long_curve_is_seen(spike: int) -> None:
    values = np.sin(np.linspace(0, 30, 100_000))
    values[spike] = 1e9
    kept = extremes(values, 1000)
    assert spike in kept
    assert len(kept) <= 1000
