"""CSV in full precision: one header for all tables, a row each, `table` first. All CSV of the package is written here.

Spreadsheets run a text that begins with = + - @ as a formula. Such a text gets an apostrophe before it, which they take
for "this is text"; numbers stay numbers.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from prunegpt.report.cells import ROW_KEYS, Detail, Table, TableRow

_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # the wide forms are read alike
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def render(tables: Sequence[Table]) -> str:
    """All tables below each other. An interval becomes two columns, `_low` and `_high`; what has no value is empty."""
    rows = [(table.name, _flat(table, row)) for table in tables for row in table.rows]
    names = list(dict.fromkeys(name for _, row in rows for name in row if name not in ROW_KEYS))
    header = ["table", *names, *(name for name in ROW_KEYS if any(name in row for _, row in rows))]
    return lines([header, *([table, *map(row.get, header[1:])] for table, row in rows)])


def lines(rows: Iterable[Iterable[Detail | list[str]]]) -> str:
    """Rows as text: numbers in full precision, nothing for None, and no text that would run as a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_text, row) for row in rows)
    return text.getvalue()


def _flat(table: Table, row: TableRow) -> dict[str, Detail | list[str]]:
    flat: dict[str, Detail | list[str]] = {}
    for name, value in table.entries(row).items():
        if isinstance(value, tuple):
            flat[f"{name}_low"], flat[f"{name}_high"] = value
        else:
            flat[name] = value
    return flat


def _text(value: Detail | list[str]) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | tuple):
        return repr(value)
    text = " ".join(value) if isinstance(value, list) else value
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # the csv module would leave a bare \r unquoted
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
