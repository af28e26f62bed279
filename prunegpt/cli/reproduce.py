"""prunegpt reproduce: published figures beside measured ones, with a verdict for each."""

from collections import Counter
from typing import Annotated

import typer

from prunegpt.cli.control import LauncherOption, PriorityOption, SlotsOption, WaitOption, execute
from prunegpt.cli.options import ROOT, JsonOption, SetOption, app, goes_with, number, print_json, say
from prunegpt.cli.sweep import SpecArgument
from prunegpt.root import Root
from prunegpt.spec.only import RunOptions

NOT_MEASURED = 3  # exit status where nothing is off, and some figures were not measured


@app.command(epilog="Example: prunegpt reproduce published.yaml --no-run")
def reproduce(
    spec: SpecArgument,
    root: Root = ROOT,
    overrides: SetOption = None,
    run: Annotated[
        bool, typer.Option("--run/--no-run", help="Run what is not finished first, or only read what there is.")
    ] = True,
    launcher: LauncherOption = None,
    slots: SlotsOption = None,
    priority: PriorityOption = 0,
    wait: WaitOption = True,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep whose tables have published figures, and compare.

    Each measured figure is within the tolerance of its published one, or off. Exit status: 0 where all are within, 1
    where one is off, 3 where none is off and some were not measured.

    On a model at hand: --set 'trials.*.model=./model'
    """
    from prunegpt.api import stored
    from prunegpt.cli.tables import print_table
    from prunegpt.errors import PruneGPTError, SpecError
    from prunegpt.planning.resolve import Planner
    from prunegpt.report.archive import Archive
    from prunegpt.report.declared import tables_of
    from prunegpt.report.reproduce import reproductions
    from prunegpt.sweep.curves import curves_in

    if not run:
        goes_with("--run", launcher=launcher, slots=slots, priority=priority or None)
    planner = Planner(spec, overrides or [], root, curves_in(root), strict=run)
    written = planner.opened.spec
    lacking = ""
    try:
        tables = planner.plan.tables
    except SpecError as error:  # its files may be elsewhere: what is published is known without them
        if run or written is None:
            raise
        tables, lacking = written.tables, str(error)
    if not any(table.reported for table in tables):
        raise PruneGPTError(f"{spec} has no published figures. Write them under `tables: - reported:`.")
    ended = 0
    if run:
        try:
            execute(planner, root, RunOptions(None, launcher, slots, priority, wait), tables=not as_json)
        except typer.Exit as end:  # what did finish is compared
            ended = end.exit_code
    if lacking and written is not None:
        say(lacking)
        archive = Archive(written.name, None, tables, (), lambda _: None)
    else:
        archive = stored(str(spec), root, overrides or [])
    found = list(reproductions(tables_of(archive)))
    counts = Counter(one.verdict for one in found)
    if as_json:
        print_json(
            [{**vars(one), "difference": one.difference, "verdict": one.verdict} for one in found],
        )
    else:
        rows = [
            [
                one.trial,
                one.heading,
                number(one.published),
                one.state if one.measured is None else number(one.measured),
                "" if one.interval is None else "{} to {}".format(*map(number, one.interval)),
                "" if one.difference is None else f"{one.difference:+.1%}",
                f"± {one.tolerance:.1%}",
                one.verdict,
            ]
            for one in found
        ]
        heads = ["trial", "column", "published", "measured", "95% interval", "difference", "tolerance", "verdict"]
        print_table(heads, rows, title=written.title if written else None, spare=("95% interval", "tolerance"))
        for source in dict.fromkeys(one.source for one in found if one.source):
            print(f"Source: {source}")
        print(
            ", ".join(
                f"{counts[verdict]} {verdict}" for verdict in ("within", "off", "not measured") if counts[verdict]
            )
        )
        if counts["not measured"] and not run:
            say(f"Measure them: {root.command('reproduce', str(spec))}")
    if counts["off"] or ended:
        raise typer.Exit(1)
    if counts["not measured"]:
        raise typer.Exit(NOT_MEASURED)
