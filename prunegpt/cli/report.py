"""prunegpt report and compare: a folder to show around, and two trials side by side."""

from pathlib import Path
from typing import Annotated

import typer

from prunegpt.cli.options import JsonOption, RootOption, print_json, say


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: prunegpt report quickstart --out report")(report)
    app.command(epilog="Example: prunegpt compare quickstart/finetuned quickstart/pruned90")(compare)


def report(
    sweep: Annotated[str, typer.Argument(metavar="NAME|SPEC", help="A stored sweep, or its spec file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; a report that is there is replaced.")],
    root: RootOption = None,
) -> None:
    """Write tables, figures, configurations and provenance as a folder that opens without a server."""
    from prunegpt.cli.table import stored, tables_of
    from prunegpt.report.figure_data import curves, in_figures
    from prunegpt.report.folder import write_folder
    from prunegpt.report.gallery import figures_of
    from prunegpt.root import Root
    from prunegpt.store import Store

    where = Root.find(root)
    found = stored(sweep, where)
    own = [trial for trial in found.results if trial.sweep == found.sweep]
    with Store.open(where, create=False) as store:
        title = store.sweep(found.sweep).title
        drawn = figures_of(own, found.windows, lambda trial: curves(trial, store.series(trial.id, in_figures)))
    files = write_folder(out, tables_of(found), title=title, results=found.results, figures=drawn, commit=found.commit)
    say(f"{out}: {len(files)} files; open {out / 'index.html'}")


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A trial: its id, or SWEEP/TRIAL.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Two trials side by side: what differs in their configuration, their metrics, and the paired test."""
    from prunegpt.registry import RENDERERS
    from prunegpt.report.compare import compare as compared
    from prunegpt.report.compare import comparison_tables
    from prunegpt.report.measure import stored_windows
    from prunegpt.root import Root
    from prunegpt.store import Store

    where = Root.find(root)
    with Store.open(where, create=False) as store:
        one, two = (store.result(int(name) if name.isdigit() else name) for name in (first, second))
    found = compared(one, two, stored_windows(where))
    if not as_json:
        print(RENDERERS.load("md")(comparison_tables(found)))
        print(found.verdict)
        return
    test = found.test
    print_json(
        {
            "settings": [{"path": row.path, "first": row.first, "second": row.second} for row in found.settings],
            "metrics": [
                {"name": row.header, "first": row.first, "second": row.second, "difference": row.difference}
                for row in found.metrics
            ],
            "p_value": test.p_value if test else None,
            "ratio": [test.ratio.value, test.ratio.low, test.ratio.high] if test else None,
            "verdict": found.verdict,
        }
    )
