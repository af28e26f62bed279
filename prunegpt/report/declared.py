"""What a spec declares of its results: the tables, made from what is stored."""

from collections.abc import Sequence
from typing import Any

from prunegpt.errors import ReportError, unknown
from prunegpt.report.archive import Archive
from prunegpt.report.cells import Table
from prunegpt.report.logged import is_logged, logged_table
from prunegpt.report.tables import build_table, table_name, usual_table


def tables_of(found: Archive, names: Sequence[str] = (), **style: Any) -> list[Table]:
    """The tables that stored results make; one of all trials where none is declared.

    Args:
        names: of the tables that are wanted; default all.
        style: fields of a TableSpec in place of what the spec says: decimals, caption, provenance.

    Raises:
        ReportError: there is no table of a name, or a caption for several.
    """
    if not found.tables and is_logged(found.results):
        return [logged_table(found.sweep, found.results)]
    specs = found.tables or (usual_table(found.sweep, found.results),)
    known = [table_name(spec) for spec in specs]
    if missing := [name for name in names if name not in known]:
        raise ReportError(unknown(f"table of {found.sweep}", missing[0], known))
    wanted = [spec for spec in specs if not names or table_name(spec) in names]
    if style.get("caption") and len(wanted) > 1:
        raise ReportError(f"a caption is of one table; {found.sweep} has {', '.join(known)}. Choose one with --table.")
    return [
        build_table(spec.model_copy(update=style), found.results, found.windows, sweep=found.sweep, commit=found.commit)
        for spec in wanted
    ]
