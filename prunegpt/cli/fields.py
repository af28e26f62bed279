"""prunegpt sweep fields: what a spec may say."""

from pathlib import Path
from typing import Annotated

import typer

from prunegpt.cli.options import say


def register(sweep: typer.Typer) -> None:
    sweep.command(epilog="Example: prunegpt sweep fields --update sweeps/README.md")(fields)


def fields(
    update: Annotated[Path | None, typer.Option("--update", help="Write it to this file instead.")] = None,
) -> None:
    """Every field of a spec with its values, default and meaning, as Markdown."""
    from prunegpt.root import write_text
    from prunegpt.spec.reference import reference

    if update is None:
        print(reference(), end="")
        return
    write_text(update, reference())
    say(f"{update}: written")
