"""Tables on a terminal: every header and number whole; columns that do not fit are left out and named below."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from prunegpt.cli.options import number
from prunegpt.errors import counted

if TYPE_CHECKING:
    from prunegpt.report import cells
    from prunegpt.report.compare import TrialComparison

TEXT = "text"  # the format of tables for a terminal
_GAP = 2  # columns between two cells
_NARROW = 16  # what a column of text may be folded to
_UNLIMITED = 100_000
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def width() -> int:
    """Columns of the terminal, or COLUMNS; without either nothing limits a line."""
    limited = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return shutil.get_terminal_size().columns if limited else _UNLIMITED


def print_table(
    columns: Iterable[str], rows: Iterable[Iterable[Any]], title: str | None = None, *, spare: Sequence[str] = ()
) -> None:
    """A table for people on standard output; numbers to the right.

    Args:
        spare: columns that are left out first where the terminal is too narrow for all, the first of them first.
    """
    body = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    _print(build(list(columns), body, width(), spare=spare, title=title))


def print_sparsities(by_tensor: Mapping[str, float], title: str | None = None) -> None:
    """A table of sparsities, 0 to 1, by tensor; the experts of one parameter, maybe hundreds, are one row."""
    from prunegpt.spec.names import of_parameters

    rows = []
    for name, found in of_parameters(by_tensor).items():
        low, high = min(found), max(found)
        called = name if name in by_tensor else f"{name} ({len(found)} expert{'s' if len(found) > 1 else ''})"
        rows.append([called, low if low == high else f"{number(low)} to {number(high)}"])
    print_table(["tensor", "sparsity"], rows, title=title)


def print_tables(tables: "Sequence[cells.Table]", form: str | None = None) -> None:
    """Tables in a format of the registry, or `text`; default: `text` on a terminal, else Markdown."""
    from prunegpt.registry import RENDERERS

    form = form or (TEXT if sys.stdout.isatty() else "md")
    if form != TEXT:
        print(RENDERERS.load(form)(tables).rstrip("\n"))
        return
    for index, table in enumerate(tables):
        _print(Group(*([Text()] if index else []), *_shown(table)))


def print_comparison(found: "TrialComparison", form: str | None = None) -> None:
    """Two configurations side by side; on a terminal they are A and B, which are explained above."""
    from prunegpt.report.compare import comparison_tables

    tables = comparison_tables(found)
    if form == TEXT or (form is None and sys.stdout.isatty()):
        print(f"A: {found.first.name}\nB: {found.second.name}")
        as_text = [replace(table, columns=_lettered(table.columns)) for table in tables if table.rows]
        print_tables([replace(as_text[0], title="A against B"), *as_text[1:]], TEXT)
        return
    print_tables(tables, form)
    if form in (None, "md"):
        print(found.verdict)


def _lettered(columns: "Sequence[cells.Heading]") -> "tuple[cells.Heading, ...]":
    return (columns[0], replace(columns[1], text="A"), replace(columns[2], text="B"), *columns[3:])


def _print(shown: RenderableType) -> None:
    Console(width=width(), highlight=False).print(shown, soft_wrap=False)


def _shown(table: "cells.Table") -> list[RenderableType]:
    """A table of a report with its title, footnotes and provenance."""
    numeric = [heading.kind != "text" for heading in table.columns]
    body = [[_cell(cell) for cell in row.cells] for row in table.rows]
    headings = [heading.text for heading in table.columns]
    spare = [heading for heading in headings[:0:-1] if heading not in ("Perplexity", "State")]
    notes = [Text(f"{note.symbol.translate(_RAISED)} {note.text}.".strip()) for note in table.footnotes]
    whole = build(headings, body, width(), spare=spare, title=table.title, numeric=numeric)
    parts: list[RenderableType] = [whole, *notes]
    return [*parts, Text(table.provenance, style="dim")] if table.provenance else parts


def _cell(cell: "cells.Cell") -> Text:
    strong = "bold" if "best" in cell.marks else ""
    return Text(cell.text, style=strong) + Text(" ".join(symbol.translate(_RAISED) for symbol in cell.footnotes))


def build(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | RenderableType]],
    limit: int,
    *,
    spare: Sequence[str] = (),
    title: str | None = None,
    numeric: Sequence[bool] | None = None,
) -> Group:
    """A table of at most `limit` columns of the terminal, and what was left out for it.

    Headers and numbers are never cut or folded; long text is, at its words where it has some. Columns go by `spare`,
    then from the right; the first one stays.

    Args:
        numeric: which columns are set to the right; default: those of numbers alone.
    """
    if numeric is None:
        numeric = [bool(rows) and all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    full = [max([cell_len(name), *(_wide(row[at]) for row in rows)]) for at, name in enumerate(columns)]
    least = [
        wide if of_numbers else max(cell_len(name), min(wide, _NARROW), *(_solid(row[at]) for row in rows), 0)
        for at, (name, wide, of_numbers) in enumerate(zip(columns, full, numeric, strict=True))
    ]
    kept = list(range(len(columns)))
    order = [columns.index(name) for name in spare] + list(range(len(columns) - 1, 0, -1))
    out: list[int] = []
    while len(kept) > 1 and sum(least[at] + _GAP for at in kept) - _GAP > limit:
        out.append(next(at for at in order if at in kept))
        kept.remove(out[-1])
    widths = _shared({at: full[at] for at in kept}, {at: least[at] for at in kept}, limit - _GAP * (len(kept) - 1))
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for at in kept:
        side = "right" if numeric[at] else "left"
        made.add_column(Text(columns[at]), justify=side, width=widths[at], overflow="fold")  # type: ignore[arg-type]
    parts: list[RenderableType] = [made]
    if all(widths[at] == full[at] for at in kept) and all(_is_line(row[at]) for row in rows for at in kept):
        places = [(at, widths[at], numeric[at]) for at in kept]
        parts.append(_Lines(["  ".join(_set(row[at], wide, right) for at, wide, right in places) for row in rows]))
    else:
        for row in rows:
            made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in (row[at] for at in kept)))
    above = [Text(title, style="bold")] if title else []
    left_out = ", ".join(columns[at] for at in sorted(out))
    below = [Text(f"not shown in {counted(limit, 'column')}: {left_out}", style="dim")] if out else []
    return Group(*above, *parts, *below)


class _Lines:
    """Rows whose cells need no folding: a table of rich takes half a millisecond for each."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for line in self._lines:
            yield Segment(f"{line}\n")


def _is_line(cell: str | RenderableType) -> bool:
    return isinstance(cell, str) and cell.isprintable()


def _set(cell: str | RenderableType, wide: int, right: bool) -> str:
    text = str(cell)
    spaces = " " * (wide - cell_len(text))
    return spaces + text if right else text + spaces


def _shared(full: dict[int, int], least: dict[int, int], room: int) -> dict[int, int]:
    """Widths between the least and the full ones: what is left of the room goes to those that need little, first."""
    widths, spare = dict(least), room - sum(least.values())
    needy = sorted((at for at in full if full[at] > least[at]), key=lambda at: full[at] - least[at])
    for index, at in enumerate(needy):
        more = max(0, min(full[at] - least[at], spare // (len(needy) - index)))
        widths[at] += more
        spare -= more
    return {at: max(1, min(wide, room)) for at, wide in widths.items()}


def _wide(cell: str | RenderableType) -> int:
    """Columns that a cell takes in one piece."""
    if isinstance(cell, str | Text):
        return max(map(cell_len, str(cell).splitlines()), default=0)
    return Measurement.get(Console(width=_UNLIMITED), Console(width=_UNLIMITED).options, cell).maximum


def _solid(cell: str | RenderableType) -> int:
    """The least width of a cell that is no text, such as a bar."""
    return 0 if isinstance(cell, str | Text) else _wide(cell)


def _is_number(cell: str | RenderableType) -> bool:
    text = str(cell) if isinstance(cell, str | Text) else "-"
    return text in ("–", "") or text.replace(",", "").replace(".", "", 1).replace("-", "", 1).isdigit()
