"""What repeated measurements come to: against closed forms, and machines that drift."""

import numpy as np
import pytest
from scipy import stats

from prunegpt.lm.speed import FEWEST, LEVEL, median, noise, ratio


@pytest.mark.parametrize("count", range(FEWEST, 40))
def test_the_interval_is_the_narrowest_of_its_kind_that_holds_the_median(count: int) -> None:
    found = median(np.arange(count, dtype=np.float64))
    place = int(found.low)
    assert found.high == count - 1 - place
    assert found.value == (count - 1) / 2
    covered = [1 - 2 * stats.binom.cdf(one - 1, count, 0.5) for one in (place + 1, place + 2)]
    assert covered[0] >= LEVEL > covered[1]


def test_a_machine_that_slows_down_favours_neither() -> None:
    slower = 1 + 0.05 * np.arange(24)  # by 5% with every run
    turns = np.array([[1, 0], [0, 1]] * 6).ravel()  # reference first, then the model first, ...
    model, reference = slower[turns == 0], slower[turns == 1]
    assert ratio(model, reference).value == pytest.approx(1, abs=0.005)
    assert noise(reference) > 0.03  # and it is reported


def test_steady_runs_are_exact() -> None:
    reference = np.full(8, 3.0)
    found = ratio(reference / 1.5, reference)
    assert (found.low, found.value, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert noise(reference) == 0


def test_equal_models_are_found_equal_in_nineteen_of_twenty() -> None:
    drawn = np.random.default_rng(0).lognormal(0, 0.1, (400, 2, 12))
    found = [ratio(model, reference) for model, reference in drawn]
    assert np.mean([one.low <= 1 <= one.high for one in found]) >= 0.94
