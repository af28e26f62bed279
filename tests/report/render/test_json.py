import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.report.cells import Cell, Footnote, Heading, Table, TableRow
from prunegpt.report.render.json import render

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**15), 10**15)


def read(*tables: Table) -> list[dict[str, Any]]:
    return json.loads(render(list(tables)), parse_constant=lambda name: 1 / 0)["tables"]


@settings(max_examples=200, deadline=None)
@given(NUMBERS, st.floats(0, 1e9), st.floats(0, 1e9), st.text(max_size=20))
def test_values_come_back_exactly(value: float, low: float, high: float, text: str) -> None:
    low, value, high = sorted((value, low, high))
    cells = (Cell(value, "shown", details={"interval": (low, high), "n": 3}), Cell(text, text))
    table = Table(
        text, "t", (Heading("Perplexity", "loss"), Heading("Layer Pruned", "text")), (TableRow("a", "finished", cells),)
    )
    (row,) = read(table)[0]["rows"]
    assert row["perplexity"] == value
    assert row["perplexity_interval"] == [low, high]
    assert row["perplexity_n"] == 3
    assert row["layer pruned"] == text
    assert (row["trial"], row["state"], row["trials"]) == ("a", "finished", [])


def test_what_has_no_number_is_null_with_a_state() -> None:
    row = TableRow("a", "diverged", (Cell(None, "diverged"),), ("a@1", "a@2"))
    (found,) = read(Table("T", "t", (Heading("Perplexity", "loss"),), (row,)))[0]["rows"]
    assert found == {"perplexity": None, "state": "diverged", "trial": "a", "trials": ["a@1", "a@2"]}


def test_a_column_wins_over_the_added_keys() -> None:
    row = TableRow("a", "finished", (Cell("shown", "shown"), Cell(1.0, "1", ("best",))))
    (found,) = read(Table("T", "t", (Heading("Trial", "text"), Heading("X", "loss")), (row,)))[0]["rows"]
    assert found["trial"] == "shown"
    assert found["x_marks"] == ["best"]


def test_the_whole_table_is_described() -> None:
    (found,) = read(Table("T", "t", (Heading("A", "text"),), (), (Footnote("1", "why"),), "from"))
    assert found == {
        "title": "T", "name": "t", "columns": ["a"], "rows": [], "footnotes": [{"symbol": "1", "text": "why"}],
        "provenance": "from",
    }  # fmt: skip
