from bisect import bisect_left
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.errors import PruningError
from prunegpt.pruning.allocation.sensitivity import sensitivity

Curve = list[tuple[float, float]]


def cost(curve: Curve, level: float) -> float:
    """Linear between (0, 0) and the points of a curve."""
    points = [(0.0, 0.0), *curve]
    right = max(1, bisect_left([x for x, _ in points], level))
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (level - x0) / (x1 - x0)


@given(
    sizes=st.lists(st.sampled_from([4, 8]), min_size=1, max_size=3),
    slopes=st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=3, max_size=3),
    sparsity=st.floats(0, 1),
)
@settings(deadline=None, max_examples=200)
def test_no_other_split_of_the_zeros_costs_less(sizes: list[int], slopes: list[list[int]], sparsity: float) -> None:
    """Brute force over every number of zeros of every layer, for convex curves whose points fall on whole zeros."""
    curves: dict[str, Curve] = {}
    for layer, rises in zip("abc", slopes, strict=True):
        height, curve = 0.0, []
        for index, rise in enumerate(sorted(rises)):
            height += rise
            curve.append(((index + 1) / 4, height))
        curves[layer] = curve
    layers = dict(zip("abc", sizes, strict=False))
    found = sensitivity(layers, sparsity, curves=curves)
    zeros = {layer: round(found[layer] * size) for layer, size in layers.items()}
    budget = round(sum(sizes) * sparsity)
    assert sum(zeros.values()) == budget
    best = min(
        sum(cost(curves[layer], count / size) for (layer, size), count in zip(layers.items(), counts, strict=True))
        for counts in product(*(range(size + 1) for size in sizes))
        if sum(counts) == budget
    )
    spent = sum(cost(curves[layer], zeros[layer] / size) for layer, size in layers.items())
    assert spent == pytest.approx(best, abs=1e-9)


def test_the_budget_goes_to_the_layer_that_minds_least() -> None:
    curves = {"tough": [(0.5, 0.01), (0.9, 0.1)], "tender": [(0.5, 1.0), (0.9, 9.0)]}
    found = sensitivity({"tough": 100, "tender": 100}, 0.5, curves=curves)
    assert found == {"tough": 0.9, "tender": 0.1}


def test_size_counts_a_large_layer_is_cheaper_a_weight() -> None:
    curve = [(0.5, 1.0), (1.0, 3.0)]
    found = sensitivity({"large": 1000, "small": 10}, 0.4, curves={"large": curve, "small": curve})
    assert found["large"] * 1000 == 404
    assert found["small"] == 0.0


def test_noise_that_dips_is_bridged() -> None:
    """A point above the hull changes nothing, an increase below 0 counts as 0, and the order of points is free."""
    clean = {"a": [(0.5, 0.0), (1.0, 1.0)], "b": [(1.0, 1.5)]}
    noisy = {"a": [(1.0, 1.0), (0.25, 0.8), (0.5, -0.1)], "b": [(0.5, 1.2), (1.0, 1.5), (0.0, 0.4)]}
    sizes = {"a": 200, "b": 300}
    for sparsity in (0.1, 0.35, 0.8, 1.0):
        assert sensitivity(sizes, sparsity, curves=noisy) == sensitivity(sizes, sparsity, curves=clean)


@given(st.floats(0, 0.8), st.integers(1, 999), st.integers(1, 999))
@settings(deadline=None)
def test_the_total_is_exact(sparsity: float, first: int, second: int) -> None:
    curve = [(0.3, 0.2), (0.55, 0.3), (0.8, 2.0)]
    found = sensitivity({"a": first, "b": second}, sparsity, curves={"a": curve, "b": curve})
    assert round(found["a"] * first) + round(found["b"] * second) == round((first + second) * sparsity)


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({"a": [(0.5, 1.0)]}, "needs a curve for every layer; b has none"),
        ({"a": [(0.5, 1.0)], "b": [(0.5, 1.0)]}, r"reaches a sparsity of 0\.5 over all; 0\.9 was asked for"),
        ({"a": [(0.5, 1.0)], "b": [(0.5, float("nan"))]}, r"must be finite; the curve of b has nan at 0\.5"),
        ({"a": [(0.5, 1.0)], "b": [(50, 1.0)]}, r"between 0 and 1, got 50\. Did you mean 0\.5"),
    ],
)
def test_curves_that_do_not_do_are_named(curves: dict[str, Curve], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        sensitivity({"a": 10, "b": 10}, 0.9, curves=curves)
