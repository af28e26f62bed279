"""What every table format must keep to, third-party ones too."""

import re

import pytest

from prunegpt.registry import RENDERERS
from prunegpt.report.cells import Cell, Footnote, Heading, Table, TableRow

TABLE = Table(
    title="WikiText-2",
    name="wikitext-2",
    columns=(Heading("Model", "text"), Heading("Perplexity", "loss")),
    rows=(
        TableRow("a", "finished", (Cell("GPT", "GPT"), Cell(21.75634, "21.76", ("best",), ("1",)))),
        TableRow("b", "diverged", (Cell("GPT", "GPT"), Cell(None, "diverged"))),
    ),
    footnotes=(Footnote("1", "a remark"), Footnote("", "on all")),
    provenance="sweep w; torch 2",
)
NAMES = RENDERERS.names()


def test_all_formats_are_tested() -> None:
    assert {"md", "latex", "csv", "html", "json"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_text_and_the_same_each_time(name: str) -> None:
    render = RENDERERS.load(name)
    text = render([TABLE])
    assert isinstance(text, str)
    assert text == render([TABLE])
    assert text.endswith("\n")
    for part in ("GPT", "21.7", "diverged"):
        assert part in text
    assert not re.search(r"\b(nan|inf)\b", text, flags=re.IGNORECASE)


@pytest.mark.parametrize("name", NAMES)
def test_several_tables_and_none(name: str) -> None:
    render = RENDERERS.load(name)
    assert render([TABLE, TABLE]).count("diverged") >= 2
    assert isinstance(render([]), str)
    empty = Table(title="Empty", name="empty", columns=TABLE.columns, rows=())
    assert isinstance(render([empty]), str)
