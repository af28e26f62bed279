"""A row as names and values, for the formats that machines read."""

from prunegpt.report.cells import Detail, Table, TableRow


def entries(table: Table, row: TableRow) -> dict[str, Detail | list[str]]:
    """The row's values by heading in lower case, each followed by its details, then state, trial and marks."""
    found: dict[str, Detail | list[str]] = {}
    for heading, cell in zip(table.columns, row.cells, strict=True):
        found[heading.key] = cell.value
        for name, detail in cell.details.items():
            found.setdefault(f"{heading.key}_{name}", detail)
        if cell.marks:
            found.setdefault(f"{heading.key}_marks", list(cell.marks))
    found.setdefault("state", row.state)
    found.setdefault("trial", row.trial)
    found.setdefault("trials", list(row.trials))
    return found
