"""Seeds against closed forms and simulation."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest

from prunegpt.errors import ReportError
from prunegpt.report.measure import measure
from prunegpt.report.statistics import (
    VarianceSource,
    combined_test,
    compare_seeds,
    compare_windows,
    mean_loss,
    spread,
    spread_interval,
)
from tests.support.results import Kept, draw_windows


def _flat(loss: float, count: int = 30) -> np.ndarray:
    """Windows without any scatter: only seeds vary."""
    return np.column_stack([np.full(count, loss * 100), np.full(count, 100.0)])


def test_spread_is_mean_and_sample_deviation() -> None:
    values = [21.0, 22.5, 21.7]
    assert spread(values) == (pytest.approx(mean(values)), pytest.approx(stdev(values)))
    assert spread([21.0]) == (21.0, None)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_spread_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ReportError, match="needs finite values"):
        spread(values)


def test_interval_over_two_seeds_by_hand() -> None:
    found = spread_interval([20.0, 22.0])  # s / sqrt(2) = 1, t(0.975, 1) = tan(0.475 pi)
    half = math.tan(0.475 * math.pi)
    assert (found.low, found.high) == (pytest.approx(21 - half), pytest.approx(21 + half))
    with pytest.raises(ReportError, match="at least 2 seeds"):
        spread_interval([20.0])


def test_without_scatter_over_windows_it_is_the_paired_t_test() -> None:
    ones, twos = [3.00, 3.05, 3.02], [3.06, 3.09, 3.10]
    apart = [a - b for a, b in zip(ones, twos, strict=True)]
    t = mean(apart) / (stdev(apart) / math.sqrt(3))
    expected = 1 - abs(t) / math.sqrt(2 + t * t)  # Student's t with 2 degrees of freedom
    found = compare_seeds({s: _flat(v) for s, v in enumerate(ones)}, {s: _flat(v) for s, v in enumerate(twos)})
    assert found.p_value == pytest.approx(expected, rel=1e-6)
    assert found.count == 3
    assert found.method == "paired t over seeds and windows"
    assert found.ratio.value == pytest.approx(math.exp(mean(apart)))
    perplexities = mean(math.exp(v) for v in ones) - mean(math.exp(v) for v in twos)
    assert found.difference.value == pytest.approx(perplexities)


def test_other_seeds_make_it_welch() -> None:
    ones, twos = [3.00, 3.04], [3.10, 3.20]
    variances = stdev(ones) ** 2 / 2, stdev(twos) ** 2 / 2
    freedom = sum(variances) ** 2 / sum(v**2 for v in variances)
    expected, _ = combined_test(mean(ones) - mean(twos), [VarianceSource(sum(variances), freedom)])
    found = compare_seeds({s: _flat(v) for s, v in enumerate(ones)}, {s + 9: _flat(v) for s, v in enumerate(twos)})
    assert found.p_value == pytest.approx(expected, rel=1e-6)
    assert found.method == "Welch t over seeds and windows"


def test_a_single_run_beside_several_is_one_more_draw() -> None:
    several = [3.00, 3.04, 3.08]
    t = (mean(several) - 3.2) / (stdev(several) * math.sqrt(1 + 1 / 3))  # Crawford & Howell 1998, equation 1
    expected = 1 - abs(t) / math.sqrt(2 + t * t)
    arguments = {s: _flat(v) for s, v in enumerate(several)}, {7: _flat(3.2)}
    random, unchanging = compare_seeds(*arguments), compare_seeds(*arguments, fixed=(False, True))
    assert random.p_value == pytest.approx(expected, rel=1e-6)
    one_sample = (mean(several) - 3.2) / (stdev(several) / math.sqrt(3))
    assert unchanging.p_value == pytest.approx(1 - abs(one_sample) / math.sqrt(2 + one_sample**2), rel=1e-6)
    assert unchanging.p_value < random.p_value


def test_one_seed_each_is_the_paired_bootstrap() -> None:
    one, two = draw_windows(3.0, seed=1), draw_windows(3.1, seed=2)
    assert compare_seeds({42: one}, {42: two}) == compare_windows(one, two)


def test_equal_configurations_do_not_differ() -> None:
    runs = {seed: draw_windows(3.0, seed=seed) for seed in range(3)}
    found = compare_seeds(runs, runs)
    assert found.p_value == 1.0
    assert found.difference.value == 0.0


def test_text_counts_as_well_as_seeds() -> None:
    """Seeds that agree on a small text leave the text in doubt."""
    scatter = np.random.default_rng(0).normal(0, 0.4, 12)
    first = {s: np.column_stack([(3 + 0.001 * s + scatter) * 100, np.full(12, 100.0)]) for s in range(4)}
    second = {s: np.column_stack([np.full(12, 305.0 + 0.1 * s), np.full(12, 100.0)]) for s in range(4)}
    apart = [mean_loss(first[s]) - mean_loss(second[s]) for s in range(4)]
    over_seeds_alone = abs(mean(apart)) / (stdev(apart) / 2) if stdev(apart) else math.inf
    assert over_seeds_alone > 5
    assert compare_seeds(first, second).p_value > 0.05


def test_level_is_kept_when_seeds_and_windows_both_vary() -> None:
    """A crossed design: a seed's effect, a window's effect on the difference, and a rest."""
    generator = np.random.default_rng(3)
    rejected = []
    for _ in range(300):
        of_window = generator.normal(0, 0.05, 25)
        runs: tuple[dict[int, np.ndarray], dict[int, np.ndarray]] = ({}, {})
        for seed in range(4):
            for side, sign in zip(runs, (0.5, -0.5), strict=True):
                losses = 3 + sign * of_window + generator.normal(0, 0.02) + generator.normal(0, 0.03, 25)
                side[seed] = np.column_stack([losses * 100, np.full(25, 100.0)])
        rejected.append(compare_seeds(*runs, resamples=400).p_value < 0.05)
    assert np.mean(rejected) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert np.mean(rejected) > 0.001  # it does reject sometimes


def test_refuses_other_windows_and_empty_sides() -> None:
    runs = {1: draw_windows(3.0), 2: draw_windows(3.0)}
    with pytest.raises(ReportError, match="same windows"):
        compare_seeds(runs, {1: draw_windows(3.0), 2: draw_windows(3.0, count=10)})
    with pytest.raises(ReportError, match="at least one measured run on each side"):
        compare_seeds(runs, {})


@pytest.mark.parametrize(
    ("prune", "keys", "fixed"),
    [
        ({"method": "magnitude"}, ("same", "same"), True),
        ({"method": "wanda"}, ("one draw", "another"), False),
        ({"method": "random"}, ("same",), False),
        ({"method": "wanda", "repair": "block"}, ("same",), False),
    ],
)
def test_what_a_seed_changes_is_not_fixed(prune: Mapping[str, Any], keys: Sequence[str], fixed: bool) -> None:
    kept = Kept()
    windows = draw_windows(3.0)
    trials = [
        kept.trial(
            f"a@{seed}", windows, seed=seed, stages=[{"kind": "prune", "prune": {"sparsity": 0.5, **prune}, "key": key}]
        )
        for seed, key in enumerate(keys)
    ]
    found = measure(trials, kept)
    assert found is not None
    assert found.fixed == fixed
