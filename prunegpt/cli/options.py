"""Options that several commands share, and how they print."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root", envvar="PRUNEGPT_ROOT", help="Folder of all results; ./runs where not given.", file_okay=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a field of the spec, such as base.model=gpt2. Repeatable."
    ),
]


def say(text: str) -> None:
    """A line for people, on standard error, so that standard output stays what a script reads."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """JSON on standard output. NaN and infinity are refused."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(columns: Iterable[str], rows: Iterable[Iterable[Any]], title: str | None = None) -> None:
    """A table for people on standard output; numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    body = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    given = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(body) and all(_is_number(row[index]) for row in body)
        given.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in body:
        given.add_row(*row)
    Console().print(given)


def number(value: Any) -> str:
    """A figure as tables show it: four significant digits, counts with separators, nothing for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    digits = 4
    while float(text := f"{value:.{digits}g}") == 1 != value and digits < 17:  # a share that is not whole
        digits += 1
    return text


def numbers(*values: float | None) -> list[str]:
    """Figures that stand together, in one notation."""
    texts = [number(value) for value in values]
    if not any("e" in text for text in texts):
        return texts
    return [number(value) if value is None else f"{value:.3e}" for value in values]


def _is_number(text: str) -> bool:
    return text in ("–", "") or text.replace(",", "").replace(".", "", 1).replace("-", "", 1).isdigit()
