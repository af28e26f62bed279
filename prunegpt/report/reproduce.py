"""Measured figures against published ones: within the tolerance or not, cell by cell."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prunegpt.report.cells import Table, TableRow

Outcome = Literal["within", "off", "not measured"]


@dataclass(frozen=True)
class Reproduction:
    """One published figure and what was measured."""

    table: str
    trial: str
    column: str  # as a spec names it
    heading: str  # of it
    published: float
    measured: float | None
    interval: tuple[float, float] | None  # of the measured one
    tolerance: float  # share of the published figure
    source: str
    state: str  # of the row, where nothing was measured

    @property
    def difference(self) -> float | None:
        """Measured less published, as a share of the published figure; None where nothing was measured."""
        if self.measured is None:
            return None
        if self.published == 0:
            return 0.0 if self.measured == 0 else float("inf")
        return (self.measured - self.published) / abs(self.published)

    @property
    def verdict(self) -> Outcome:
        """Whether the figure was reproduced."""
        if self.difference is None:
            return "not measured"
        return "within" if abs(self.difference) <= self.tolerance else "off"


def reproductions(tables: Iterable[Table]) -> Iterator[Reproduction]:
    """Every published number of some tables, in their order."""
    for table in tables:
        for row in table.rows:
            yield from _row(table, row)


def _row(table: Table, row: TableRow) -> Iterator[Reproduction]:
    for heading, cell in zip(table.columns, row.cells, strict=True):
        if heading.beside is None or not isinstance(cell.value, int | float):
            continue
        beside = row.cells[heading.beside]
        interval, tolerance = beside.details.get("interval"), cell.details.get("tolerance")
        yield Reproduction(
            table=table.name,
            trial=row.trial,
            column=table.columns[heading.beside].name,
            heading=table.columns[heading.beside].text,
            published=float(cell.value),
            measured=float(beside.value) if isinstance(beside.value, int | float) else None,
            interval=interval if isinstance(interval, tuple) else None,
            tolerance=float(tolerance) if isinstance(tolerance, int | float) else 0.0,
            source=str(cell.details.get("source") or ""),
            state=row.state,
        )
