"""prunegpt sweep study: a sweep's searches for Optuna's dashboard."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from prunegpt.cli.options import RootOption, say


def register(sweep: typer.Typer) -> None:
    sweep.command(epilog="Example: prunegpt sweep study recover90 --out study.db")(study)


def study(
    name: Annotated[str, typer.Argument(help="A sweep.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="A new SQLite file, or one of Optuna's.", show_default=False)
    ],
    root: RootOption = None,
) -> None:
    """Write the searches of a sweep into a file of Optuna's, for its dashboard and whoever reads its studies.

    Written again, the file has the trials as they then are; other studies in it stay.
    """
    from prunegpt.root import Root
    from prunegpt.store import Store
    from prunegpt.sweep.search.export import write_studies

    with Store.open(Root.find(root), create=False) as store:
        for written, trials in write_studies(out, store, name).items():
            say(f"{written}: {trials} trials")
    print(shlex.join(["optuna-dashboard", f"sqlite:///{out}"]))
    say("(a package of its own: pip install optuna-dashboard)")
