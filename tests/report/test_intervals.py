"""An interval holds its own value, and stands in one notation with it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunegpt.errors import ReportError
from prunegpt.report.cells import Cell
from prunegpt.report.format import together
from prunegpt.report.measure import measure, standings
from prunegpt.report.statistics import (
    Interval,
    WindowLosses,
    compare_seeds,
    compare_windows,
    perplexity_interval,
    spread_interval,
)
from prunegpt.report.tables import build_table
from prunegpt.spec.schema import TableSpec
from tests.support.results import Kept, draw_windows

ANY = st.floats(-1e300, 1e300)
LOSSES = st.lists(st.floats(0.01, 30), min_size=2, max_size=12)


@given(ANY, ANY, ANY)
def test_none_is_made_that_does_not_hold_its_value(value: float, one: float, two: float) -> None:
    if one <= value <= two:
        assert Interval(value, one, two).low == one
        assert Cell(value, "", details={"interval": (one, two)}).value == value
    else:
        with pytest.raises(ReportError, match="an interval must hold its own value"):
            Interval(value, one, two)
        with pytest.raises(ReportError, match="an interval must hold its own value"):
            Cell(value, "", details={"interval": (one, two)})
    assert Interval.around(value, min(one, two), max(one, two)).value == value


def windows_of(losses: list[float]) -> WindowLosses:
    return np.column_stack([np.asarray(losses) * 16, np.full(len(losses), 16.0)])


@given(LOSSES, LOSSES, st.integers(0, 3))
def test_every_interval_that_is_computed_holds_its_value(first: list[float], second: list[float], seed: int) -> None:
    count = min(len(first), len(second))
    one, two = windows_of(first[:count]), windows_of(second[:count])
    perplexity_interval(one, resamples=50, seed=seed)
    compare_windows(one, two, resamples=50, seed=seed)
    spread_interval(first)
    for others in ({1: two, 2: one}, {1: two, 2: one, 3: two}, {7: two}):
        compare_seeds({1: one, 2: two, 9: one}, others, resamples=50, seed=seed)


@given(st.sets(st.integers(1, 5), min_size=1), st.sets(st.integers(1, 5), min_size=1))
def test_a_difference_and_its_interval_are_of_the_same_seeds(first: set[int], second: set[int]) -> None:
    kept = Kept()
    trials = [
        kept.trial(f"{group}@{seed}", draw_windows(loss + seed**2 / 10, count=9), group=group, seed=seed)
        for group, loss, seeds in (("a", 3.0, first), ("b", 3.3, second))
        for seed in seeds
    ]
    rows = [measure([trial for trial in trials if trial.group == group], kept) for group in "ab"]
    assert rows[0] is not None
    assert rows[1] is not None
    (other,) = [one for one in standings(rows) if one is not None and not one.best]
    assert other.comparison is not None
    assert other.difference == other.comparison.difference.value
    spec = TableSpec.model_validate({"title": "T", "rows": ["*"], "columns": ["trial", "difference"]})
    made = build_table(spec, trials, kept)
    (cell,) = [row.cells[1] for row in made.rows if row.cells[1].text != "best"]
    assert cell.value == other.difference
    common = first & second
    partial = len(common) >= 2 and max(len(first), len(second)) > len(common)
    noted = [note.text for note in made.footnotes if note.symbol in cell.footnotes]
    assert noted == ([f"over the {len(common)} seeds that both have"] if partial else [])


@given(st.lists(ANY, min_size=1, max_size=4))
def test_the_values_of_a_cell_stand_in_one_notation(values: list[float]) -> None:
    texts = together("loss", *values)
    assert len({"e" in text for text in texts}) == 1
    assert [float(text) for text in texts] == pytest.approx(values, rel=6e-3, abs=6e-3)


@pytest.mark.parametrize("loss", [1.0, 5.0, 11.3, 11.6, 13.0, 60.0, 120.0])
@pytest.mark.parametrize("seeds", [1, 3])
def test_so_do_those_of_a_table(loss: float, seeds: int) -> None:
    kept = Kept()
    trials = [
        kept.trial(f"{g}@{s}", draw_windows(loss + s / 5 + (g == "b"), noise=loss / 9, seed=s), group=g, seed=s)
        for g in "ab"
        for s in range(seeds)
    ]
    columns = ["perplexity", "difference", "word_perplexity"]
    spec = TableSpec.model_validate({"title": "T", "rows": ["*"], "columns": columns})
    for row in build_table(spec, trials, kept).rows:
        for cell in row.cells:
            numbers = [
                part for part in cell.text.replace("±", " ").replace("[", " ").split() if part[-1:] in "0123456789],"
            ]
            decimals = {"e" in number for number in numbers if not number.startswith("(")}
            assert len(decimals) <= 1, cell.text
