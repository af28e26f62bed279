"""prunegpt table, report and compare: what is stored of a sweep, as tables and as a folder to show around."""

from pathlib import Path
from typing import Annotated

import typer

from prunegpt.cli import complete
from prunegpt.cli.options import ROOT, JsonOption, SetOption, app, goes_with, print_json, say
from prunegpt.errors import counted
from prunegpt.memory import without_collector
from prunegpt.root import Root

FORMATS = ("text", "md", "latex", "csv", "html", "json")
_ALSO = {"markdown": "md", "tex": "latex"}
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        help=f"One of {', '.join(FORMATS)} (default: text on a terminal, else md).",
        show_default=False,
        autocompletion=complete.choice(*FORMATS),
    ),
]


def checked(format: str | None) -> str | None:
    """The format by its name in the registry, or `text`; an unknown one is an error."""
    from prunegpt.registry import RENDERERS

    name = _ALSO.get(format, format) if format else None
    if name and name != FORMATS[0]:
        RENDERERS.check(name)
    return name


@app.command(epilog="Example: prunegpt table quickstart --format latex")
@without_collector()
def table(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="NAME|SPEC", help="Sweep name, spec file, or archive.", autocompletion=complete.sweep_or_spec
        ),
    ],
    format: FormatOption = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            "-t",
            metavar="NAME",
            help="Only the table of that name. Repeatable.",
            autocompletion=complete.tables,
        ),
    ] = None,
    decimals: Annotated[
        int | None, typer.Option(min=0, max=9, help="Decimals of perplexities and bits (default: 2 and 3).")
    ] = None,
    caption: Annotated[str | None, typer.Option(help="Caption in LaTeX (default: the title).")] = None,
    provenance: Annotated[
        bool | None, typer.Option("--provenance/--no-provenance", help="The line of versions, protocol and date.")
    ] = None,
    update: Annotated[Path | None, typer.Option(help="Update the marked regions of this file.")] = None,
    archive: Annotated[Path | None, typer.Option(help="Save the underlying records to this folder.")] = None,
    root: Root = ROOT,
    overrides: SetOption = None,
) -> None:
    """Print the tables of a sweep, or update them in a file.

    A sweep that declares no tables gets one with all its trials.

    In a file they are written between `<!-- prunegpt:table NAME -->` and `<!-- /prunegpt:table -->`; NAME/TABLE in
    place of NAME is for one of them.
    """
    from prunegpt.api import stored
    from prunegpt.cli.tables import print_tables
    from prunegpt.report.archive import read_archive, write_archive
    from prunegpt.report.declared import tables_of
    from prunegpt.report.render import markdown

    form = checked(format)
    folder = Path(sweep)
    archived = (folder / "results.json").is_file()
    if archived:
        goes_with("a spec file", set=overrides)
    if update or archive:
        goes_with("tables that are printed", format=format)
    found = read_archive(folder) if archived else stored(sweep, root, overrides or [])
    style = {"decimals": decimals, "caption": caption, "provenance": provenance}
    tables = tables_of(found, only or (), **{name: value for name, value in style.items() if value is not None})
    if archive:
        write_archive(archive, found)
        say(f"{archive}: {counted(len(found.results), 'trial')} kept")
    if update:
        from prunegpt.report.regions import update_file

        changed = update_file(update, markdown.regions(found.sweep, tables))
        say(f"{update}: {'updated' if changed else 'already up to date'}")
    if not update and not archive:
        print_tables(tables, form)


@app.command(epilog="Example: prunegpt report quickstart --out report")
@without_collector()
def report(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="NAME|SPEC", help="Sweep name, or its spec file.", autocompletion=complete.sweep_or_spec
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder; an existing report is replaced.")],
    root: Root = ROOT,
) -> None:
    """Write a static report of a sweep.

    Tables, figures, configurations and provenance.
    """
    from prunegpt.api import declared, stored
    from prunegpt.errors import PruneGPTError
    from prunegpt.report.declared import tables_of
    from prunegpt.report.folder import write_folder
    from prunegpt.report.gallery import figures_of
    from prunegpt.report.material import stored_curves
    from prunegpt.store import Store

    found = stored(sweep, root)
    own = [trial for trial in found.results if trial.sweep == found.sweep]
    with Store.open(root, create=False) as store:
        row = store.sweep(found.sweep)
        drawn = figures_of(own, found.windows, stored_curves(store), row.spec)
    made = []
    for spec, figure in declared(found.sweep, root):
        if isinstance(figure, PruneGPTError):
            say(f"figure {spec.name}: {figure}")
        else:
            made.append(figure)
    named = {figure.name for figure in made}
    figures = [*made, *(figure for figure in drawn if figure.name not in named)]
    files = write_folder(
        out, tables_of(found), title=row.title, results=found.results, figures=figures, commit=found.commit
    )
    say(f"{out}: {counted(len(files), 'file')}; open {out / 'index.html'}")


@app.command(epilog="Example: prunegpt figure quickstart pareto --out pareto.pdf")
def figure(
    sweep: Annotated[
        str, typer.Argument(metavar="NAME", help="Sweep name.", show_default=False, autocompletion=complete.sweeps)
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[FIGURE]",
            help="Its figure; default: list them.",
            show_default=False,
            autocompletion=complete.figures,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write: .pdf, .svg or .png (default: FIGURE.pdf).")
    ] = None,
    root: Root = ROOT,
) -> None:
    """Write one figure of a sweep.

    Those that its spec declares, and those of every sweep, such as pareto.
    """
    from prunegpt.api import Sweep

    known = Sweep(sweep, root=root.path)
    if name is None:
        goes_with("the name of a figure", out=out)
        print("\n".join(known.figures))
        return
    out = out or Path(f"{name}.pdf")
    known.figure(name).save(out)
    say(f"{out}: written")


@app.command(epilog="Example: prunegpt compare quickstart/finetuned quickstart/pruned90")
@without_collector()
def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="Trial id, SWEEP/TRIAL, or SWEEP/GROUP: all its seeds.", autocompletion=complete.trials
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="What to compare with.", autocompletion=complete.trials)],
    format: FormatOption = None,
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Compare two trials, or two configurations over their seeds.

    Configuration differences, metrics and a paired test.
    """
    from prunegpt.cli.tables import print_comparison
    from prunegpt.cli.trial import members
    from prunegpt.report.compare import compare as compared
    from prunegpt.report.measure import stored_windows
    from prunegpt.store import Store

    if as_json:
        goes_with("tables that are printed", format=format)
    with Store.open(root, create=False) as store:
        one, two = (members(store, name) for name in (first, second))
    found = compared(one, two, stored_windows(root))
    if not as_json:
        print_comparison(found, checked(format))
        return
    test = found.test
    print_json(
        {
            "settings": [{"path": path, "first": one, "second": two} for path, (one, two) in found.settings.items()],
            "metrics": [
                {"name": row.header, "first": row.first, "second": row.second, "difference": row.difference}
                for row in found.metrics
            ],
            "p_value": test.p_value if test else None,
            "ratio": [test.ratio.value, test.ratio.low, test.ratio.high] if test else None,
            "verdict": found.verdict,
        }
    )
