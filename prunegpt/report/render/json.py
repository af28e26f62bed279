"""JSON in full precision."""

import json
from collections.abc import Sequence
from typing import Any

from prunegpt.report.cells import Table


def render(tables: Sequence[Table]) -> str:
    """`{"tables": [{"title", "name", "columns", "rows", "footnotes", "provenance"}]}`.

    A row is keyed by the headings in lower case. What has no number is null, and `state` explains why.
    """
    found = {"tables": [_table(table) for table in tables]}
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _table(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "name": table.name,
        "columns": list(table.keys),
        "rows": [table.entries(row) for row in table.rows],
        "footnotes": [{"symbol": note.symbol, "text": note.text} for note in table.footnotes],
        "provenance": table.provenance,
    }
