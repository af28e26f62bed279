"""GitHub Markdown."""

import re
from collections.abc import Iterable, Sequence

from prunegpt.report.cells import Table
from prunegpt.report.format import one_line

_ACTIVE = re.compile(r"[\\`*_{}\[\]<>#|~$&]")  # what may start markup, HTML, mathematics or a new cell

_RAISED = "<sup>{}</sup>"


def render(tables: Sequence[Table]) -> str:
    """Each table under its title."""
    return "\n".join(f"### {escape(table.title)}\n\n{body(table)}" for table in tables)


def regions(sweep: str, tables: Sequence[Table]) -> dict[str, str]:
    """What the marked regions of a file hold: SWEEP all tables with their titles, SWEEP/TABLE one without."""
    return {sweep: render(tables), **{f"{sweep}/{table.name}": body(table) for table in tables}}


def body(table: Table) -> str:
    """A table without its title: cells, footnotes, provenance."""
    lines = [
        _line(escape(heading.text) for heading in table.columns),
        _line("---" if heading.kind == "text" else "---:" for heading in table.columns),
        *(_line(cell.marked(escape, "**{}**", _RAISED) for cell in row.cells) for row in table.rows),
    ]
    notes = [note.marked(escape, _RAISED) for note in table.footnotes]
    if table.provenance:
        notes.append(f"<sub>{escape(table.provenance)}</sub>")
    below = "<br>\n".join(notes)
    return "\n".join(lines) + "\n" + (f"\n{below}\n" if below else "")


def escape(text: str) -> str:
    """Text that reads as itself."""
    return _ACTIVE.sub(lambda found: "\\" + found[0], one_line(text))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
