"""Rows beside the median of the pruned ones, and only where there is one."""

import numpy as np
import pytest

from prunegpt.records import ComparisonKey
from prunegpt.report.measure import Measured, beside_median
from prunegpt.report.statistics import compare_windows, mean_loss
from tests.support.results import draw_windows


def measured(shift: float, *, seed: int = 1, protocol: str = "p") -> Measured:
    windows = draw_windows(3.0 + shift, count=64, seed=seed)
    key = ComparisonKey("text", "validation", protocol)
    return Measured(float(np.exp(mean_loss(windows))), 1, None, key, {42: windows}, fixed=True)


def test_the_ratio_is_to_the_row_in_the_middle() -> None:
    rows = [measured(shift, seed=seed) for seed, shift in enumerate((5.0, 0.0, 0.1, 0.5, -0.1))]
    found = beside_median(rows, [True] * 5)
    middle = sorted(rows, key=lambda row: row.perplexity)[2]
    for row, one in zip(rows, found, strict=True):
        assert one is not None
        assert one.ratio.value == pytest.approx(row.perplexity / middle.perplexity)
        if row is not middle:
            assert one.ratio == compare_windows(row.windows[42], middle.windows[42]).ratio
    assert [one.differs for one in found if one] == [True, *(one.p_value < 0.05 for one in found[1:] if one)]
    assert not found[rows.index(middle)].differs  # type: ignore[union-attr]


def test_rows_that_have_no_median() -> None:
    rows = [measured(0.0), measured(0.1), measured(0.2), measured(0.3), None]
    assert beside_median(rows, [True, True, False, False, True]) == [None] * 5  # two are no company
    found = beside_median(rows, [False, True, True, True, True])
    assert found[0] is None
    assert found[4] is None
    assert all(found[1:4])
    assert beside_median([measured(0.0, protocol=str(index)) for index in range(4)], [True] * 4) == [None] * 4
