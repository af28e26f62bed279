"""HTML that needs nothing beside itself, from `report/templates`."""

from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prunegpt.report.cells import Cell, Footnote, Table


def render(tables: Sequence[Table]) -> str:
    """A whole page."""
    return page("page.html", title=", ".join(table.title for table in tables) or "Tables", tables=tables)


def page(template: str, **content: Any) -> str:
    """A template with its content; all text in it is escaped."""
    return _templates().get_template(template).render(content)


def fragment(table: Table) -> Markup:
    """One table with heading, footnotes and provenance."""
    return Markup(page("table.html", table=table))


def _marked(part: Cell | Footnote) -> Markup:
    marks = ("<strong>{}</strong>", "<sup>{}</sup>")
    return Markup(part.marked(escape, *marks) if isinstance(part, Cell) else part.marked(escape, marks[1]))


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("prunegpt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"fragment": fragment, "marked": _marked}
    return made
