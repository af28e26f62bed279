"""prunegpt sweep status: trials, filtered, sorted and grouped."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegpt.cli import complete
from prunegpt.cli.options import ROOT, JsonOption, number, print_json, sweep_app
from prunegpt.cli.trial import print_failures
from prunegpt.cli.watch import queue_lines
from prunegpt.errors import counted, listed
from prunegpt.memory import without_collector
from prunegpt.root import Root

if TYPE_CHECKING:
    from prunegpt.records import TrialResult
    from prunegpt.report.field import TrialField
    from prunegpt.report.fields import TrialFields

_LISTED = 200  # finished trials that are shown without being asked for all
_MEASURED = ("perplexity", "sparsity", "own_seconds")  # what groups show unless columns are chosen


@sweep_app.command(epilog="Example: prunegpt sweep status quickstart --where 'sparsity > 0.5' --group-by method")
@without_collector()
def status(
    name: Annotated[
        str | None,
        typer.Argument(help="Sweep name (default: all sweeps).", show_default=False, autocompletion=complete.sweeps),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help=f"Show all trials, even if there are more than {_LISTED} finished ones.")
    ] = False,
    where: Annotated[
        str,
        typer.Option(help="Filter, such as 'perplexity < 40 and method == \"wanda\"'; see docs/how-to/filters.md."),
    ] = "",
    sort: Annotated[
        str,
        typer.Option(help="Field to sort by; `-perplexity` sorts the greatest first.", autocompletion=complete.fields),
    ] = "",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD,...", help="Fields to show in place of the usual ones.", autocompletion=complete.fields
        ),
    ] = None,
    group_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD,...",
            help="One row per group, with mean and standard deviation; --json has the range.",
            autocompletion=complete.fields,
        ),
    ] = None,
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Show the trials of a sweep, or of all.

    With results and failure reasons; and which sweep of the root runs, and which wait for their turn.
    """
    from prunegpt.report.fields import TrialFields, ordered
    from prunegpt.report.query import where as filtered
    from prunegpt.store import Store
    from prunegpt.store.curves import Summaries
    from prunegpt.sweep.lock import coordinator
    from prunegpt.sweep.queue import stored_sweeps, waiting

    chosen = bool(where or sort or columns or group_by)
    with Store.open(root, create=False) as store:
        sweeps = stored_sweeps(root, store, name)
        states = {trial: state for sweep in sweeps for trial, state in store.states(sweep.name)}
        finished = [trial for trial, state in states.items() if state == "finished"]
        left_out = set() if everything or as_json or chosen else set(finished[:-_LISTED])
        results = store.results_of([trial for trial in states if trial not in left_out])
        curves = Summaries(store, name) if chosen else None
        fields = TrialFields(results, notes=store.notes(), curves=lambda: curves)
        if where:
            matches = filtered(where, fields)
            results = [result for result in results if matches(result)]
        if sort:
            results = ordered(results, fields.find(sort.removeprefix("-")), sort.startswith("-"))
        shown = fields.chosen(columns or ())
        if group_by:
            _print_groups(results, fields.chosen(group_by), shown or _usual(fields), as_json)
            return
        if as_json:
            values = [{field.name: field.of(result) for field in shown} for result in results]
            pairs = zip(results, values, strict=True)
            holder, queue = coordinator(root), [asdict(waiter) for waiter in waiting(root)]
            trials = [{**_result_json(result), **more} for result, more in pairs]
            print_json({"trials": trials, "coordinator": holder and asdict(holder), "queue": queue})
            return
        if shown:
            _print_fields(results, shown)
        else:
            _print_results(results, name)
        if left_out:
            print(f"and {counted(len(left_out), 'more finished trial')}; list them with --all")
        if not shown:
            print_failures(results, store, root)
    if where:
        print(f"{number(len(results))} of {counted(len(states), 'trial')}")
        return
    counts = Counter(states.values())
    print(", ".join(f"{number(count)} {state}" for state, count in counts.most_common()) or "no trials")
    running = coordinator(root)
    if running is not None:
        other = f"{running.sweep} is " if running.sweep and running.sweep != name else ""
        print(
            f"{other}run by process {running.pid} on {running.host}; watch it with `{root.command('sweep', 'watch')}`"
        )
    for line in queue_lines(waiting(root)):
        print(line)


def _usual(fields: "TrialFields") -> "list[TrialField]":
    """The figures of groups: what was measured; of W&B runs every metric."""
    own = [field for key, field in fields.fixed.items() if key in _MEASURED]
    return own + [field for field in fields.logged.values() if field.numeric]


def _print_fields(results: "list[TrialResult]", fields: "list[TrialField]") -> None:
    from prunegpt.cli.tables import print_table
    from prunegpt.report.format import number_style, written

    columns = []
    for field in fields:
        values = [field.of(result) for result in results]
        how = number_style(field.kind, values)
        columns.append([written(value, field.kind, how) for value in values])
    named = [[result.name for result in results], *columns]
    print_table(["trial", *(field.name for field in fields)], zip(*named, strict=True))


def _print_groups(
    results: "list[TrialResult]", by: "list[TrialField]", figures: "list[TrialField]", as_json: bool
) -> None:
    from prunegpt.cli.tables import print_table
    from prunegpt.report.format import number_style, written
    from prunegpt.report.groups import grouped

    groups, figures = grouped(results, by), [field for field in figures if field.numeric and field not in by]
    spreads = [{field.name: group.spread(field) for field in figures} for group in groups]
    if as_json:
        print_json(
            {
                "groups": [
                    {
                        "by": dict(zip([field.name for field in by], group.values, strict=True)),
                        "trials": [trial.name for trial in group.trials],
                        "where": group.where,
                        "figures": {key: vars(spread) for key, spread in found.items()},
                    }
                    for group, found in zip(groups, spreads, strict=True)
                ]
            }
        )
        return
    rows: list[list[str]] = []
    hows = {field: number_style(field.kind, [field.of(result) for result in results]) for field in (*by, *figures)}
    for group, found in zip(groups, spreads, strict=True):
        row = [written(value, field.kind, hows[field]) for field, value in zip(by, group.values, strict=True)]
        row.append(number(len(group.trials)))
        for field in figures:
            spread = found[field.name]
            mean, off = (
                "" if value is None else written(value, field.kind, hows[field])
                for value in (spread.mean, spread.deviation)
            )
            row.append(f"{mean} ± {off}" if off else mean)
        rows.append(row)
    print_table([*(field.name for field in by), "trials", *(field.name for field in figures)], rows)
    for reason in dict.fromkeys(spread.why for found in spreads for spread in found.values() if spread.why):
        print(f"note: no mean where figures are {reason}")


def _print_results(results: "list[TrialResult]", name: str | None) -> None:
    from prunegpt.cli.tables import print_table
    from prunegpt.records import comparable

    print_table(
        ["id", "trial", "state", "perplexity", "sparsity", "stages", "note"],
        (
            [
                str(result.id),
                result.address if name is None else result.name,
                result.state,
                *map(result.metrics.get, ("perplexity", "sparsity")),
                f"{len(result.stages)}/{len(result.plan.stages)}",
                result.reason or result.so_far,
            ]
            for result in results
        ),
        spare=("id", "stages"),
    )
    alike = {result.id for result in (comparable(results) if name else results)}
    if odd := [result.name for result in results if result.measured and result.id not in alike]:
        print(f"note: evaluated differently from the other trials, so not comparable: {listed(odd)}")


def _result_json(result: "TrialResult") -> dict[str, Any]:
    return {
        "id": result.id,
        "sweep": result.sweep,
        "name": result.name,
        "state": result.state,
        "perplexity": result.metrics["perplexity"],
        "sparsity": result.metrics["sparsity"],
        "so_far": result.so_far,
        "stages": [stage.model_dump(include={"key", "kind", "cached", "seconds"}) for stage in result.stages],
        "attempts": result.attempts,
        "reason": result.reason,
        "error": result.error,
        "log": result.folder + "/log.txt" if result.folder else None,
    }
