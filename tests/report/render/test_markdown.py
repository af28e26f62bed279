"""Markdown read back by a Markdown parser."""

import re
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prunegpt.report.cells import Cell, Footnote, Heading, Table, TableRow
from prunegpt.report.format import one_line
from prunegpt.report.render.markdown import body, escape, render

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
TEXT = st.text(max_size=30)


def read_cells(markdown: str) -> list[list[str]]:
    """Text of the cells, markup removed."""
    html = PARSER.render(markdown)
    rows = re.findall(r"<tr>(.*?)</tr>", html, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[unescape(re.sub(r"</?(strong|sup)>", "", cell)) for cell in row] for row in cells]


def one_cell(text: str, **fields: object) -> Table:
    row = TableRow("a", "finished", (Cell("x", "x"), Cell(text, text, **fields)))  # type: ignore[arg-type]
    return Table("T", "t", (Heading("A", "text"), Heading("B", "loss")), (row,))


@settings(max_examples=400, deadline=None)
@given(TEXT)
def test_cells_read_back_as_they_were(text: str) -> None:
    assert read_cells(body(one_cell(text)))[1] == ["x", one_line(text)]


@pytest.mark.parametrize(
    "text",
    [
        "a|b",
        "a\\|b",
        "**bold**",
        "_x_ __y__",
        "`code`",
        "<script>",
        "&amp;",
        "[a](b)",
        "~~x~~",
        "$x$",
        "a\nb",
        "#1",
        "*",
    ],
)
def test_markup_is_text(text: str) -> None:
    assert read_cells(body(one_cell(text)))[1][1] == one_line(text)


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_titles_stay_headings(title: str) -> None:
    html = PARSER.render(render([Table(title, "t", (Heading("A", "text"),), ())]))
    found = re.match(r"<h3>(.*?)</h3>", html, flags=re.DOTALL)
    assert found
    assert unescape(found[1]) == one_line(title)


def test_the_best_is_bold_and_footnotes_are_raised() -> None:
    table = one_cell("21.76", marks=("best",), footnotes=("†", "1"))
    html = PARSER.render(body(table))
    assert "<strong>21.76</strong><sup>†,1</sup>" in html


def test_numbers_are_aligned_to_the_right() -> None:
    assert body(one_cell("1")).splitlines()[1] == "| --- | ---: |"


def test_footnotes_and_provenance_stand_below() -> None:
    table = Table(
        "T", "t", (Heading("A", "text"),), (), (Footnote("1", "a | b"), Footnote("", "whole")), provenance="sweep x_y"
    )
    html = PARSER.render(body(table))
    assert "<sup>1</sup> a | b.<br>" in html
    assert "whole.<br>" in html
    assert "<sub>sweep x_y</sub>" in html
    assert html.index("</table>") < html.index("a | b")


def test_escape_leaves_plain_text_readable() -> None:
    assert escape("GPT-2 (XL) 1.5 B, 95% [1, 2]") == r"GPT-2 (XL) 1.5 B, 95% \[1, 2\]"
