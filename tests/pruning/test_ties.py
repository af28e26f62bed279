"""Scores that are equal are pruned in the order of a stable sort, as in the published code of Wanda: the first row
first, in a row the lower column. `tests/pretend` asks the same of an accelerator."""

import pytest

from prunegpt.pruning import threshold
from prunegpt.registry import CRITERIA, SOLVERS
from tests.support.ties import differing

METHODS = [*CRITERIA.names(), *SOLVERS.names()]


def test_there_are_methods() -> None:
    assert {"wanda", "magnitude", "sparsegpt", "admm", "obert"} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("few", [threshold.FEW, 0], ids=["search", "histograms"])
def test_equal_scores_go_as_a_stable_sort_has_them(method: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold, "FEW", few)
    assert differing(method) == []
