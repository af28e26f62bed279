import csv
import io
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.report.cells import Cell, Footnote, Heading, Table, TableRow
from prunegpt.report.render.csv import render as as_csv
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


HEADINGS = ("State", "trial", "Trials", "Table", "X", "X_marks", "x_n", "X_interval", "x_interval_low", "Loss",
            "state (column)", "trial (column) (column)")  # fmt: skip


@given(st.lists(st.sampled_from(HEADINGS), unique_by=str.lower))
def test_no_heading_takes_a_key_that_means_something_else(headings: list[str]) -> None:
    """Of any table: the state and trial of a row, the details of a cell and every column can be read."""
    details = {"n": 3, "interval": (0.0, 9.0)}
    cells = tuple(Cell(float(place % 9), "x", ("best",), details=details) for place, _ in enumerate(headings))
    row = TableRow("a", "diverged", cells, ("a@1",))
    table = Table("T", "t", tuple(Heading(text, "loss") for text in headings), (row,))
    (told,) = read(table)
    (found,) = told["rows"]
    assert (found["state"], found["trial"], found["trials"]) == ("diverged", "a", ["a@1"])
    assert len(set(told["columns"])) == len(headings)
    for key, heading, cell in zip(told["columns"], headings, cells, strict=True):
        assert key.removesuffix(" (column)").startswith(heading.lower().removesuffix(" (column)"))
        assert found[key] == cell.value
        assert (found[f"{key}_n"], found[f"{key}_interval"], found[f"{key}_marks"]) == (3, [0.0, 9.0], ["best"])
    (line,) = csv.DictReader(io.StringIO(as_csv([table])))
    assert len(line) == len(found) + len(headings) + 1  # an interval is two columns there, and the table's name one
    assert (line["table"], line["state"], line["trial"]) == ("t", "diverged", "a")
    assert all(float(line[key]) == cell.value for key, cell in zip(told["columns"], cells, strict=True))


def test_the_whole_table_is_described() -> None:
    (found,) = read(Table("T", "t", (Heading("A", "text"),), (), (Footnote("1", "why"),), "from"))
    assert found == {
        "title": "T", "name": "t", "columns": ["a"], "rows": [], "footnotes": [{"symbol": "1", "text": "why"}],
        "provenance": "from",
    }  # fmt: skip
