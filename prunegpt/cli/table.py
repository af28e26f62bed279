"""prunegpt table: the declared tables of a sweep, from what is stored."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegpt.cli.options import RootOption, SetOption, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunegpt.report.archive import Archive
    from prunegpt.report.cells import Table
    from prunegpt.root import Root
    from prunegpt.spec.schema import TableSpec

FORMATS = ("md", "latex", "csv", "html", "json")


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: prunegpt table quickstart --format latex")(table)


def table(
    sweep: Annotated[str, typer.Argument(metavar="NAME|SPEC", help="A stored sweep, its spec file, or an archive.")],
    format: Annotated[str, typer.Option("--format", "-f", help=f"One of {', '.join(FORMATS)}.")] = "md",
    update: Annotated[Path | None, typer.Option("--update", help="Rewrite the marked region of this file.")] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Folder to keep the records that the tables are made from.")
    ] = None,
    root: RootOption = None,
    overrides: SetOption = None,
) -> None:
    """Print the tables of a sweep, or put them into a file between its markers.

    A sweep that declares none has one of all its trials.

    A file takes them between `<!-- prunegpt:table NAME -->` and `<!-- /prunegpt:table -->`.
    """
    from prunegpt.registry import RENDERERS
    from prunegpt.report.archive import read_archive
    from prunegpt.root import Root

    RENDERERS.check(format)
    folder = Path(sweep)
    if (folder / "results.json").is_file():
        found = read_archive(folder)
    else:
        found = stored(sweep, Root.find(root), overrides or [])
    tables = tables_of(found)
    if archive:
        _write(found, archive)
    if update:
        from prunegpt.report.regions import update_file

        changed = update_file(update, found.sweep, RENDERERS.load("md")(tables))
        say(f"{update}: {'updated' if changed else 'already up to date'}")
    if not update and not archive:
        print(RENDERERS.load(format)(tables).rstrip("\n"))


def stored(sweep: str, root: "Root", overrides: "Sequence[str]" = ()) -> "Archive":
    """What the store has of a sweep, by its name or its spec.

    A spec's tables are those it declares now, and its trials are there whether they were run or not.
    """
    path = Path(sweep)
    if path.suffix not in (".yaml", ".yml"):
        return _stored(sweep, root, None)
    from prunegpt.errors import StoreError
    from prunegpt.planning.resolve import plan_file
    from prunegpt.report.archive import Archive
    from prunegpt.report.provenance import spec_commit
    from prunegpt.report.rows import with_planned
    from prunegpt.sweep.curves import curves_in

    plan = plan_file(path, overrides, root=root, curves=curves_in(root))
    try:
        found = _stored(plan.name, root, plan.tables)
    except StoreError:
        found = Archive(plan.name, spec_commit(path), plan.tables, (), lambda _: None)
    return replace(found, results=with_planned(found.results, plan))


def _stored(name: str, root: "Root", declared: "Sequence[TableSpec] | None") -> "Archive":
    from prunegpt.report.archive import Archive
    from prunegpt.report.measure import stored_windows
    from prunegpt.report.provenance import spec_commit
    from prunegpt.store import Store

    with Store.open(root, create=False) as store:
        found = store.sweep(name)
        tables = store.tables(name) if declared is None else tuple(declared)
        named = {row.trial.partition("/")[0] for table in tables for row in table.rows if "/" in row.trial}
        others = [sweep.name for sweep in store.sweeps() if sweep.name in named - {name}]
        results = tuple(result for sweep in (name, *others) for result in store.results(sweep))
    commit = spec_commit(Path(found.source)) if found.source else None
    return Archive(name, commit, tables, results, stored_windows(root))


def tables_of(found: "Archive") -> "list[Table]":
    """The tables that stored results make; one of all trials where none is declared."""
    from prunegpt.report.tables import build_table, usual_table

    return [
        build_table(table, found.results, found.windows, sweep=found.sweep, commit=found.commit)
        for table in found.tables or (usual_table(found.sweep, found.results),)
    ]


def _write(found: "Archive", folder: Path) -> None:
    from prunegpt.report.archive import write_archive

    write_archive(
        folder,
        sweep=found.sweep,
        tables=found.tables,
        results=found.results,
        windows=found.windows,
        commit=found.commit,
    )
    say(f"{folder}: {len(found.results)} trials kept")
