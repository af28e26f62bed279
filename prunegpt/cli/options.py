"""The command line itself, options that several of its commands share, and how they print."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from prunegpt.root import ROOT_VARIABLE, Root

app = typer.Typer(
    name="prunegpt",
    help="Prune GPT-style language models, recover the loss by distillation, and get tables of the measured results.",
    epilog="Start with: prunegpt sweep run sweeps/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help are brackets, and a flag takes no <bool>
    context_settings={"help_option_names": ["-h", "--help"]},
)
sweep_app = typer.Typer(help="Check, run and inspect sweeps.", no_args_is_help=True)


def _root(given: str) -> Root:
    if given and Path(given).is_file():
        raise typer.BadParameter(f"Directory {given!r} is a file.")
    return Root.find(given)


ROOT: Any = typer.Option(
    "",
    "--root",
    envvar=ROOT_VARIABLE,
    help="Results directory (default: ./runs).",
    metavar="DIRECTORY",
    parser=_root,
    show_default=False,
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a field of the spec, such as base.model=gpt2. Repeatable."
    ),
]

TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow running code from the model's repository; review it first.")
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


def print_sparsities(by_tensor: Mapping[str, float], title: str | None = None) -> None:
    """A table of sparsities, 0 to 1, by tensor; the experts of one parameter, maybe hundreds, are one row."""
    from prunegpt.spec.names import of_parameters

    rows = []
    for name, found in of_parameters(by_tensor).items():
        low, high = min(found), max(found)
        called = name if name in by_tensor else f"{name} ({len(found)} expert{'s' if len(found) > 1 else ''})"
        rows.append([called, low if low == high else f"{number(low)} to {number(high)}"])
    print_table(["tensor", "sparsity"], rows, title=title)


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
    """Numbers that are shown together, in one notation."""
    texts = [number(value) for value in values]
    if not any("e" in text for text in texts):
        return texts
    return [number(value) if value is None else f"{value:.3e}" for value in values]


def _is_number(text: str) -> bool:
    return text in ("–", "") or text.replace(",", "").replace(".", "", 1).replace("-", "", 1).isdigit()
