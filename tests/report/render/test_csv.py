import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prunegpt
from prunegpt.report.cells import Cell, Heading, Table, TableRow
from prunegpt.report.render.csv import render

IMPORT = re.compile(r"^\s*(import csv|from csv)\b|\bto_csv\(", re.MULTILINE)
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
    plain = re.sub("\r\n?", "\n", text)
    assert row["h2"].removeprefix("'" if not plain.startswith("'") else "") == plain
    assert (row["table"], row["trial"], row["state"], row["trials"]) == ("t", "a", "finished", "a@1 a@2")


BEGINNINGS = ("=", "+", "-", "@", "＝", " =", "\t@", "\n-", "\r+")


@given(st.sampled_from(BEGINNINGS), PRINTABLE)
def test_no_text_runs_as_a_formula(beginning: str, rest: str) -> None:
    """Wherever a text can stand: cells, names of trials and tables, headings, details."""
    text = beginning + rest
    cell = Cell(text, text, details={"note": text})
    made = Table(text, text, (Heading(text, "text"),), (TableRow(text, "finished", (cell,), (text, text)),))
    for line in csv.reader(io.StringIO(render([made]), newline="")):
        for field in line:
            assert not re.match(r"\s*[=+\-@＝＋－＠]", field) or re.fullmatch(r"[+-]?[\d.]+([eE][+-]?\d+)?", field)


@pytest.mark.parametrize("number", ["-1", "+1", "-0.5", "-1e-3", "+.5E10"])
def test_a_text_that_is_a_number_stays_one(number: str) -> None:
    (row,) = read(table(Cell(number, number), Cell(-0.5, "-0.5"), Cell(-3, "-3")))
    assert (row["h0"], row["h1"], row["h2"]) == (number, "-0.5", "-3")


def test_all_csv_is_written_in_one_place() -> None:
    package = Path(prunegpt.__file__).parent
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if IMPORT.search(path.read_text())}
    assert found == {"report/render/csv.py"}


def test_tables_of_different_columns_share_one_header() -> None:
    first, second = read(table(Cell(1.5, "1.5"), name="one"), table(Cell(None, "–"), Cell(2, "2"), name="two"))
    assert (first["table"], first["h0"], first["h1"]) == ("one", "1.5", "")
    assert (second["table"], second["h0"], second["h1"]) == ("two", "", "2")
    assert list(first)[-3:] == ["state", "trial", "trials"]


def test_marks_and_truth_values() -> None:
    (row,) = read(table(Cell(True, "true", ("best", "off-target"))))
    assert (row["h0"], row["h0_marks"]) == ("true", "best off-target")
