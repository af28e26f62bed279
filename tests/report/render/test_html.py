"""HTML read back by a parser."""

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.report.cells import Cell, Footnote, Heading, Table, TableRow
from prunegpt.report.render.html import fragment, render

VOID = {"meta", "br", "img"}


class Reader(HTMLParser):
    """Collects the text of elements and checks that they nest."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append(tag)
        self.texts.setdefault(tag, []).append("")
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def table(text: str, state: str = "finished") -> Table:
    cells = (Cell("x", "x"), Cell(text, text, ("best",), ("1",)))
    row = TableRow("a", state, cells)  # type: ignore[arg-type]
    return Table(text, "t", (Heading("A", "text"), Heading(text, "loss")), (row,), (Footnote("1", text),), text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_text_comes_back_and_is_never_markup(text: str) -> None:
    reader = read(fragment(table(text)))
    assert reader.texts["h2"] == [text]
    assert reader.texts["strong"] == [text]
    assert reader.texts["th"] == ["A", text]
    assert set(reader.seen) <= {
        "section",
        "h2",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "strong",
        "sup",
        "p",
    }


def test_scripts_are_text() -> None:
    text = render([table("<script>alert('x')</script>")])
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_page_needs_nothing_beside_itself() -> None:
    reader = read(render([table("a"), table("b")]))
    assert reader.links == []
    assert {"script", "link", "img", "iframe"}.isdisjoint(reader.seen)
    assert reader.seen.count("table") == 2
    assert reader.texts["title"] == ["a, b"]


def test_unfinished_rows_look_different() -> None:
    assert 'class="unfinished"' in fragment(table("a", "failed"))
    assert 'class="unfinished"' not in fragment(table("a"))
