"""What a table is, once it is built: frozen, and all a renderer needs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from prunegpt.report.format import Value, ValueKind, is_number, number_style, text_of, written
from prunegpt.report.statistics import Interval

RowState = Literal[
    "finished",
    "partial",
    "running",
    "failed",
    "diverged",
    "stopped",
    "waiting",
    "missing",
    "not finite",
    "not measured",
]
Mark = Literal["best", "tied", "off-target"]
Detail = Value | tuple[float, float]

TIED = "†"
OFF_TARGET = "‡"
UNTYPICAL = "§"
TOO_NOISY = "¶"
ROW_KEYS = ("table", "state", "trial", "trials")  # of JSON and CSV, whatever a table's columns are called


@dataclass(frozen=True)
class Heading:
    """A column's head."""

    text: str
    kind: ValueKind
    beside: int | None = None  # of published figures: the place of the column that they are of
    family: str = ""  # what it has in common with its neighbours, in a head of two rows
    short: str = ""  # its own part of such a head
    name: str = ""  # of its column in a spec, where it is one

    @property
    def key(self) -> str:
        """The key of a column: the heading in lower case."""
        return self.text.lower()


@dataclass(frozen=True)
class Cell:
    """One value, as a number for machines and as text for people."""

    value: Value
    text: str
    marks: tuple[Mark, ...] = ()
    footnotes: tuple[str, ...] = ()  # symbols of the table's footnotes
    details: Mapping[str, Detail] = field(default_factory=dict)  # interval, sd, n, ...: keys beside the value in JSON

    def __post_init__(self) -> None:
        if isinstance(interval := self.details.get("interval"), tuple) and isinstance(self.value, float):
            Interval(self.value, *interval)  # refuses one that does not hold the value

    def marked(self, escape: Callable[[str], str], strong: str, raised: str) -> str:
        """The text in some markup, the best one strong, with its footnotes raised behind it; `{}` holds their place."""
        text = escape(self.text)
        if "best" in self.marks and text:
            text = strong.format(text)
        symbols = ",".join(map(escape, self.footnotes))
        return text + raised.format(symbols) if symbols else text


@dataclass(frozen=True)
class TableRow:
    """One row: a trial, or the seeds of one configuration."""

    trial: str
    state: RowState
    cells: tuple[Cell, ...]
    trials: tuple[str, ...] = ()  # the single trials behind it


def in_one_notation(columns: Sequence[Heading], rows: Sequence[TableRow]) -> tuple[TableRow, ...]:
    """The rows, with all numbers of a column of settings or foreign metrics written alike, as lists of trials do.

    A cell that says more than its number stays as it is.
    """
    made = [list(row.cells) for row in rows]
    for place, heading in enumerate(columns):
        if heading.kind != "number":
            continue
        bare = [row for row in made if is_number(row[place].value) and row[place].text == text_of(row[place].value)]
        how = number_style("number", (row[place].value for row in bare))
        for row in bare:
            row[place] = replace(row[place], text=written(row[place].value, "number", how))
    return tuple(replace(row, cells=tuple(cells)) for row, cells in zip(rows, made, strict=True))


@dataclass(frozen=True)
class Footnote:
    """What a symbol in a cell means; without a symbol it belongs to the whole table."""

    symbol: str
    text: str

    def marked(self, escape: Callable[[str], str], raised: str) -> str:
        """The note in some markup; see `Cell.marked`."""
        return f"{raised.format(escape(self.symbol))} {escape(self.text)}." if self.symbol else f"{escape(self.text)}."


@dataclass(frozen=True)
class Table:
    """A table ready to be rendered."""

    title: str
    name: str  # in file names and in the markers of a README
    columns: tuple[Heading, ...]
    rows: tuple[TableRow, ...]
    footnotes: tuple[Footnote, ...] = ()
    provenance: str = ""
    caption: str = ""  # in LaTeX; default: the title

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the columns in JSON and CSV: headings in lower case, all different.

        One that means something else in a row (its state, or a detail of another column) gets `(column)` behind it.
        """
        plain = [heading.key for heading in self.columns]
        found: list[str] = []
        for key in plain:
            if key in ROW_KEYS or any(key.startswith(f"{other}_") for other in plain):
                key += " (column)"
            while key in found:
                key += " (column)"
            found.append(key)
        return tuple(found)

    def entries(self, row: TableRow) -> dict[str, Detail | list[str]]:
        """A row for programs: values by `keys`, each followed by its details; then state, trial and trials."""
        found: dict[str, Detail | list[str]] = {}
        for key, cell in zip(self.keys, row.cells, strict=True):
            found[key] = cell.value
            found |= {f"{key}_{name}": detail for name, detail in cell.details.items()}
            if cell.marks:
                found[f"{key}_marks"] = list(cell.marks)
        return {**found, "state": row.state, "trial": row.trial, "trials": list(row.trials)}


def slug(title: str) -> str:
    """A title as a name: lower case, words joined by hyphens."""
    return re.sub(r"[^\w.]+", "-", title.casefold()).strip("-.") or "table"


class Footnotes:
    """Collects the footnotes of a table while its cells are made; an equal text gets the symbol it has."""

    def __init__(self) -> None:
        self._symbols: dict[str, str] = {}
        self._legend: dict[str, str] = {}

    def number(self, text: str) -> str:
        """The symbol of a numbered footnote."""
        return self._symbols.setdefault(text, str(len(self._symbols) + 1))

    def legend(self, symbol: str, text: str) -> str:
        """Explains a symbol such as a dagger, or with an empty one the whole table."""
        self._legend[text] = symbol
        return symbol

    def all(self) -> tuple[Footnote, ...]:
        """Symbols first, then numbers, then remarks on the whole table."""
        marks = [Footnote(symbol, text) for text, symbol in self._legend.items() if symbol]
        remarks = [Footnote("", text) for text, symbol in self._legend.items() if not symbol]
        return (
            *sorted(marks, key=lambda note: note.symbol),
            *(Footnote(symbol, text) for text, symbol in self._symbols.items()),
            *remarks,
        )
