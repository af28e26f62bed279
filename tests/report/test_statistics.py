"""The bootstrap against exact enumeration, closed forms and simulation."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.errors import ReportError
from prunegpt.report.statistics import (
    check_paired,
    check_windows,
    compare_windows,
    default_block,
    holm,
    mean_loss,
    perplexity_interval,
    resampled_sums,
    spread,
)
from tests.support.results import draw_windows


def test_resampled_means_follow_the_exact_distribution() -> None:
    values = np.array([[1.0, 2.0], [4.0, 1.0], [2.0, 5.0]])
    exact = [
        sum(values[i, 0] for i in drawn) / sum(values[i, 1] for i in drawn)
        for drawn in itertools.product(range(3), repeat=3)
    ]
    sums = resampled_sums(values, block=1, resamples=40_000, seed=1)
    means = sums[:, 0] / sums[:, 1]
    for value in sorted(set(np.round(exact, 9))):
        expected = np.mean(np.isclose(exact, value))
        standard_error = math.sqrt(expected * (1 - expected) / len(means))
        assert abs(np.mean(np.isclose(means, value)) - expected) < 4.5 * standard_error


def test_blocks_follow_the_exact_distribution() -> None:
    values = np.arange(1.0, 6.0)[:, None] ** 2  # 5 rows in blocks of 2: two whole blocks and a rest of one
    exact = [
        sum(values[(a + i) % 5, 0] for i in range(2)) + sum(values[(b + i) % 5, 0] for i in range(2)) + values[c, 0]
        for a, b, c in itertools.product(range(5), repeat=3)
    ]
    sums = resampled_sums(values, block=2, resamples=60_000, seed=2)[:, 0]
    assert set(np.round(sums, 6)) == set(np.round(exact, 6))
    assert sums.mean() == pytest.approx(np.mean(exact), abs=5 * np.std(exact) / math.sqrt(60_000))
    assert sums.std() == pytest.approx(np.std(exact), rel=0.02)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 40), block=st.integers(1, 40), seed=st.integers(0, 5))
def test_each_resample_has_as_many_rows_as_there_are(count: int, block: int, seed: int) -> None:
    block = min(block, count)
    sums = resampled_sums(np.ones((count, 1)), block=block, resamples=20, seed=seed)
    assert np.allclose(sums, count)


def test_drawing_in_parts_covers_every_row_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunegpt.report.statistics.DRAWN_AT_ONCE", 7)
    values = np.eye(4)
    drawn = resampled_sums(values, block=2, resamples=20_000, seed=0).mean(axis=0)
    assert drawn == pytest.approx([1.0] * 4, abs=0.03)


@pytest.mark.parametrize(("count", "block"), [(2, None), (9, 1), (40, None), (41, 6), (41, 41)])
def test_draws_that_are_kept_give_the_sums_of_drawing_again(
    count: int, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.column_stack([np.random.default_rng(1).normal(5.0, 0.3, (count, 2)), np.zeros(count)])
    kept, again = (resampled_sums(values, block=block, resamples=500, seed=3) for _ in range(2))
    monkeypatch.setattr("prunegpt.report.statistics.COUNTED", 0)
    drawn = resampled_sums(values, block=block, resamples=500, seed=3)
    np.testing.assert_allclose(kept, drawn, rtol=1e-12)
    assert np.array_equal(kept, again)
    assert not kept[:, 2].any()  # models that do not differ differ by nothing, and not by rounding


def test_interval_agrees_with_the_normal_approximation() -> None:
    windows = draw_windows(3.0, count=400, noise=0.4, seed=3)
    losses = windows[:, 0] / windows[:, 1]
    error = losses.std() / math.sqrt(len(losses))
    found = perplexity_interval(windows, block=1, resamples=20_000)
    z = NormalDist().inv_cdf(0.975)
    assert found.value == pytest.approx(math.exp(losses.mean()))
    assert math.log(found.low) == pytest.approx(losses.mean() - z * error, abs=0.1 * error)
    assert math.log(found.high) == pytest.approx(losses.mean() + z * error, abs=0.1 * error)


def test_tokens_weigh() -> None:
    windows = np.array([[10.0, 10.0], [300.0, 100.0]])
    assert mean_loss(windows) == pytest.approx(310 / 110)
    assert perplexity_interval(windows).value == pytest.approx(math.exp(310 / 110))


def test_equal_seeds_give_equal_intervals() -> None:
    windows = draw_windows(3.0)
    assert perplexity_interval(windows, seed=4) == perplexity_interval(windows, seed=4)
    assert perplexity_interval(windows, seed=4) != perplexity_interval(windows, seed=5)


def test_higher_levels_are_wider() -> None:
    windows = draw_windows(3.0)
    half, usual, wide = (perplexity_interval(windows, level=level) for level in (0.5, 0.95, 0.99))
    assert wide.low < usual.low < half.low < half.value < half.high < usual.high < wide.high


def _coverage(count: int, correlation: float, block: int | None, trials: int = 400) -> float:
    """Share of intervals that hold the true loss of an autoregressive series of windows."""
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(trials):
        noise = generator.normal(size=count + 30)
        for index in range(1, len(noise)):
            noise[index] += correlation * noise[index - 1]
        losses = 3 + 0.3 * noise[30:]
        windows = np.column_stack([losses * 100, np.full(count, 100.0)])
        found = perplexity_interval(windows, block=block, resamples=600)
        hits += found.low <= math.exp(3) <= found.high
    return hits / trials


@pytest.mark.parametrize("count", [16, 64])
def test_coverage_of_independent_windows(count: int) -> None:
    assert _coverage(count, 0.0, None) == pytest.approx(0.95, abs=0.035)  # three standard errors of the simulation


def test_blocks_restore_coverage_where_neighbours_are_alike() -> None:
    independent, blocks = _coverage(216, 0.4, 1), _coverage(216, 0.4, None)
    assert independent < 0.87
    assert blocks > 0.9


def test_paired_test_keeps_its_level() -> None:
    generator = np.random.default_rng(11)
    p_values = []
    for _ in range(400):
        shared, own = generator.normal(size=(2, 40))
        tokens = generator.integers(80, 130, 40).astype(float)
        one = np.column_stack([(3 + 0.3 * shared) * tokens, tokens])
        two = np.column_stack([(3 + 0.3 * shared + 0.02 * own) * tokens, tokens])
        p_values.append(compare_windows(one, two, resamples=600).p_value)
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.08)


def test_pairing_finds_what_single_intervals_hide() -> None:
    one, two = draw_windows(3.00, seed=1), draw_windows(3.02, seed=1)
    two[:, 0] += np.random.default_rng(0).normal(0, 1.0, len(two))
    found = compare_windows(one, two)
    first, second = perplexity_interval(one), perplexity_interval(two)
    assert first.high > second.low  # the single intervals overlap
    assert found.p_value < 0.001
    assert found.difference.high < 0
    assert found.ratio.high < 1
    assert found.difference.value == pytest.approx(first.value - second.value)
    assert found.ratio.value == pytest.approx(first.value / second.value)


def test_a_model_does_not_differ_from_itself() -> None:
    windows = draw_windows(3.0)
    found = compare_windows(windows, windows)
    assert found.p_value == 1.0
    assert (found.difference.low, found.difference.value, found.difference.high) == (0.0, 0.0, 0.0)


def test_order_only_turns_the_sign() -> None:
    one, two = draw_windows(3.0, seed=1), draw_windows(3.03, seed=2)
    there, back = compare_windows(one, two), compare_windows(two, one)
    assert there.p_value == pytest.approx(back.p_value)
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.ratio.low == pytest.approx(1 / back.ratio.high)


@settings(max_examples=60, deadline=None)
@given(shift=st.floats(-0.15, 0.15), seed=st.integers(0, 50), count=st.integers(9, 70))
def test_interval_and_p_value_say_the_same(shift: float, seed: int, count: int) -> None:
    one = draw_windows(3.0, count=count, seed=seed)
    two = draw_windows(3.0 + shift, count=count, seed=seed + 1)
    found = compare_windows(one, two, resamples=9_999)  # of few windows, the ends lie between two of 999
    if found.p_value < 0.04:
        assert not found.ratio.low <= 1 <= found.ratio.high
    if found.p_value > 0.06:
        assert found.ratio.low <= 1 <= found.ratio.high


def test_few_windows_can_show_a_large_difference() -> None:
    one, two = draw_windows(3.0, count=8, noise=0.3), draw_windows(3.4, count=8, noise=0.3)
    two[:, 0] += np.random.default_rng(0).normal(0, 0.5, 8)
    assert compare_windows(one, two).p_value < 0.001


@pytest.mark.parametrize(("count", "block"), [(2, 1), (7, 1), (8, 2), (26, 2), (27, 3), (64, 4), (1000, 10)])
def test_default_block_is_the_cube_root(count: int, block: int) -> None:
    assert default_block(count) == block


def test_refuses_unequal_windows() -> None:
    with pytest.raises(ReportError, match="same windows; one has 60 and the other 59"):
        compare_windows(draw_windows(3.0), draw_windows(3.0, count=59))
    other = draw_windows(3.0)
    other[7, 1] = 100
    with pytest.raises(ReportError, match="window 7 scores 128 tokens in one and 100 in the other"):
        check_paired(draw_windows(3.0), other)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (np.ones((3, 3)), r"shape \[windows, 2\].*got \[3, 3\]"),
        (np.ones(4), r"got \[4\]"),
        (np.ones((1, 2)), "at least 2 windows, got 1"),
        (np.array([[1.0, 2.0], [np.nan, 2.0]]), "the model has diverged"),
        (np.array([[1.0, 2.0], [np.inf, 2.0]]), "the model has diverged"),
        (np.array([[1.0, 2.0], [1.0, 0.0]]), "tokens positive"),
        (np.array([[9e4, 2.0], [1.0, 2.0]]), "the model has diverged"),
    ],
)
def test_refuses_what_has_no_interval(windows: np.ndarray, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        check_windows(windows)


def test_refuses_blocks_longer_than_the_text() -> None:
    with pytest.raises(ReportError, match="a block must hold 1 to 5 windows, got 6"):
        resampled_sums(np.ones((5, 1)), block=6)


def test_equal_values_have_no_spread() -> None:
    """Their mean may differ from them in the last bit."""
    share = 25.490196078431374
    assert spread([share] * 3) == (pytest.approx(share), 0.0)
    assert np.std([share] * 3, ddof=1) > 0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_nor_reorders(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)
