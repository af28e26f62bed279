"""HTML that needs nothing beside itself."""

from collections.abc import Sequence
from html import escape

from prunegpt.report.cells import Table, TableRow

STYLE = """\
:root { color-scheme: light dark; --line: #8886; --faint: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { padding: .3rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom-width: 2px; }
.right { text-align: right; white-space: nowrap; }
tr.unfinished td { font-style: italic; background: var(--faint); }
.note, .provenance { margin: .2rem 0; font-size: .85rem; }
.provenance { opacity: .75; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
figure svg, figure img { max-width: 100%; height: auto; background: #fff; }
"""
_RAISED = "<sup>{}</sup>"


def render(tables: Sequence[Table]) -> str:
    """A whole page."""
    title = ", ".join(table.title for table in tables) or "Tables"
    return page(title, "\n".join(fragment(table) for table in tables))


def page(title: str, content: str) -> str:
    """A page around content that is HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{content}</body>\n</html>\n"
    )


def fragment(table: Table) -> str:
    """One table with heading, footnotes and provenance."""
    head = "".join(
        f'<th scope="col"{_side(heading.kind != "text")}>{escape(heading.text)}</th>' for heading in table.columns
    )
    notes = "".join(f'<p class="note">{note.marked(escape, _RAISED)}</p>\n' for note in table.footnotes)
    provenance = f'<p class="provenance">{escape(table.provenance)}</p>\n' if table.provenance else ""
    rows = "".join(_row(table, row) for row in table.rows)
    return (
        f'<section id="{escape(table.name)}">\n<h2>{escape(table.title)}</h2>\n<div class="scroll"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n{notes}{provenance}</section>\n"
    )


def _side(right: bool) -> str:
    return ' class="right"' if right else ""


def _row(table: Table, row: TableRow) -> str:
    look = "" if row.state in ("finished", "partial") else ' class="unfinished"'
    cells = "".join(
        f"<td{_side(heading.kind != 'text')}>{cell.marked(escape, '<strong>{}</strong>', _RAISED)}</td>"
        for heading, cell in zip(table.columns, row.cells, strict=True)
    )
    return f"<tr{look}>{cells}</tr>\n"
