"""Rows beside the mean of the pruned ones: against a mean computed by hand, and only where there is one."""

import numpy as np
import pytest

from prunegpt.report.measure import Measured
from prunegpt.report.statistics import mean_loss
from prunegpt.report.typical import beside_mean
from tests.report.made import draw_windows


def measured(shift: float, *, seed: int = 1, protocol: str = "p") -> Measured:
    windows = draw_windows(3.0 + shift, count=64, seed=seed)
    return Measured(float(np.exp(mean_loss(windows))), None, 1, None, protocol, "k", {42: windows}, fixed=True)


def test_the_ratio_is_to_the_geometric_mean() -> None:
    rows = [measured(shift) for shift in (0.0, 0.0, 0.3)]
    found = beside_mean(rows, [True] * 3)
    mean = float(np.exp(np.mean([np.log(row.perplexity) for row in rows])))
    for row, one in zip(rows, found, strict=True):
        assert one is not None
        assert one.ratio.value == pytest.approx(row.perplexity / mean)
        assert one.ratio.low - 1e-9 <= one.ratio.value <= one.ratio.high + 1e-9
    assert found[2] is not None
    assert found[2].differs


def test_what_is_like_the_others_does_not_differ() -> None:
    found = beside_mean([measured(0.0, seed=seed) for seed in range(6)], [True] * 6)
    assert all(one is not None and one.p_value > 0.001 for one in found)
    same = beside_mean([measured(0.0)] * 4, [True] * 4)
    assert all(one is not None and one.ratio.value == pytest.approx(1) and not one.differs for one in same)


def test_rows_that_have_no_mean() -> None:
    rows = [measured(0.0), measured(0.1), measured(0.2), measured(0.3), None]
    assert beside_mean(rows, [True, True, False, False, True]) == [None] * 5  # two are no company
    found = beside_mean(rows, [False, True, True, True, True])
    assert found[0] is None
    assert found[4] is None
    assert all(found[1:4])
    assert beside_mean([measured(0.0, protocol=str(index)) for index in range(4)], [True] * 4) == [None] * 4
