"""CSV in full precision: one header for all tables, a row each, `table` first."""

import csv
import io
from collections.abc import Sequence

from prunegpt.report.cells import Detail, Table, TableRow

_LAST = ("state", "trial", "trials")


def render(tables: Sequence[Table]) -> str:
    """All tables below each other. An interval becomes two columns, `_low` and `_high`; what has no value is empty."""
    rows = [(table.name, _flat(table, row)) for table in tables for row in table.rows]
    names = list(dict.fromkeys(name for _, row in rows for name in row if name not in _LAST))
    header = ["table", *names, *(name for name in _LAST if any(name in row for _, row in rows))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for table, row in rows:
        writer.writerow([table, *(_text(row.get(name)) for name in header[1:])])
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
    if isinstance(value, list):
        return " ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")  # the csv module would leave a bare \r unquoted
    return repr(value)
