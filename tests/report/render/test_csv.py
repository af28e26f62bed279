import csv
import io
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.report.cells import Cell, Heading, Table, TableRow
from prunegpt.report.render.csv import render

PRINTABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)


def read(*tables: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render(list(tables)), newline="")))


def table(*cells: Cell, name: str = "t") -> Table:
    headings = tuple(Heading(f"H{i}", "loss") for i in range(len(cells)))
    return Table(name, name, headings, (TableRow("a", "finished", cells, ("a@1", "a@2")),))


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.floats(0, 9), st.floats(0, 9), PRINTABLE)
def test_values_come_back_exactly(value: float, whole: int, low: float, high: float, text: str) -> None:
    low, value, high = sorted((low, value, high))
    (row,) = read(table(Cell(value, "x", details={"interval": (low, high)}), Cell(whole, "x"), Cell(text, text)))
    assert float(row["h0"]) == value
    assert (float(row["h0_interval_low"]), float(row["h0_interval_high"])) == (low, high)
    assert int(row["h1"]) == whole
    assert row["h2"] == re.sub("\r\n?", "\n", text)
    assert (row["table"], row["trial"], row["state"], row["trials"]) == ("t", "a", "finished", "a@1 a@2")


def test_tables_of_different_columns_share_one_header() -> None:
    first, second = read(table(Cell(1.5, "1.5"), name="one"), table(Cell(None, "–"), Cell(2, "2"), name="two"))
    assert (first["table"], first["h0"], first["h1"]) == ("one", "1.5", "")
    assert (second["table"], second["h0"], second["h1"]) == ("two", "", "2")
    assert list(first)[-3:] == ["state", "trial", "trials"]


def test_marks_and_truth_values() -> None:
    (row,) = read(table(Cell(True, "true", ("best", "off-target"))))
    assert (row["h0"], row["h0_marks"]) == ("true", "best off-target")
