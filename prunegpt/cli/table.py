"""prunegpt table: the declared tables of a sweep, from what is stored."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegpt.cli.options import RootOption, SetOption, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunegpt.report.cells import Table
    from prunegpt.root import Root
    from prunegpt.spec.schema import TableSpec

FORMATS = ("md", "latex", "csv", "html", "json")


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: prunegpt table quickstart --format latex")(table)


def table(
    sweep: Annotated[str, typer.Argument(metavar="NAME|SPEC", help="A stored sweep, or its spec file.")],
    format: Annotated[str, typer.Option("--format", "-f", help=f"One of {', '.join(FORMATS)}.")] = "md",
    update: Annotated[Path | None, typer.Option("--update", help="Rewrite the marked region of this file.")] = None,
    root: RootOption = None,
    overrides: SetOption = None,
) -> None:
    """Print the tables of a sweep, or put them into a file between its markers.

    A file takes them between `<!-- prunegpt:table NAME -->` and `<!-- /prunegpt:table -->`.
    """
    from prunegpt.registry import RENDERERS
    from prunegpt.root import Root

    RENDERERS.check(format)
    where = Root.find(root)
    name, tables = _tables(sweep, where, overrides or [])
    if update:
        from prunegpt.report.regions import update_file

        changed = update_file(update, name, RENDERERS.load("md")(tables))
        say(f"{update}: {'updated' if changed else 'already up to date'}")
        return
    print(RENDERERS.load(format)(tables).rstrip("\n"))


def _tables(sweep: str, root: "Root", overrides: list[str]) -> "tuple[str, list[Table]]":
    path = Path(sweep)
    if path.suffix not in (".yaml", ".yml"):
        return sweep, tables_of(sweep, root)
    from prunegpt.planning.resolve import plan_file

    plan = plan_file(path, overrides, root=root)
    return plan.name, tables_of(plan.name, root, plan.tables)


def tables_of(name: str, root: "Root", declared: "Sequence[TableSpec] | None" = None) -> "list[Table]":
    """The tables of a stored sweep: those it was last run with, or those that a spec declares now."""
    from prunegpt.report.provenance import spec_commit
    from prunegpt.report.tables import build_table
    from prunegpt.report.windows import stored_windows
    from prunegpt.store import Store

    with Store.open(root, create=False) as store:
        stored = store.sweep(name)
        specs = store.tables(name) if declared is None else declared
        named = {row.trial.partition("/")[0] for spec in specs for row in spec.rows if "/" in row.trial}
        others = [sweep.name for sweep in store.sweeps() if sweep.name in named - {name}]
        results = [result for sweep in (name, *others) for result in store.results(sweep)]
    commit = spec_commit(Path(stored.source)) if stored.source else None
    windows = stored_windows(root)
    return [build_table(spec, results, windows, sweep=name, commit=commit) for spec in specs]
