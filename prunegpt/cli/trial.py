"""prunegpt trial: run one from its folder, show one, serve several."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegpt.cli import complete
from prunegpt.cli.options import ROOT, JsonOption, TrustOption, located, number, numbers, print_json
from prunegpt.errors import counted
from prunegpt.root import Root

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prunegpt.records import AttemptRecord, TrialResult
    from prunegpt.store import AttemptRow, Store

_LOG = "log.txt"
_LINES = 3  # of a log, where several trials are listed
_SHOWN = 20  # trials whose failure is shown
app = typer.Typer(help="Run or inspect single trials.", no_args_is_help=True)


ProcessesOption = Annotated[
    int, typer.Option("--processes", min=1, help="Number of data-parallel processes, one per GPU.")
]


@app.command(epilog="Example: prunegpt trial run runs/trials/quickstart/finetuned/attempt-1")
def run(
    folder: Annotated[Path, typer.Argument(help="Attempt folder that contains trial.json.", show_default=False)],
    processes: ProcessesOption = 1,
    trust_remote_code: TrustOption = False,
) -> None:
    """Run a trial from its attempt folder.

    Without a database, for example to reproduce a failure.
    """
    from prunegpt.launch.worker import die_with_parent

    die_with_parent()
    record = _runner(processes, trust_remote_code)(folder)
    print(f"{record.sweep}/{record.trial}: {record.state}")
    for stage in record.stages:
        perplexity = stage.evaluation.perplexity if stage.evaluation else None
        print(f"  {stage.kind}{' (cached)' if stage.cached else ''}: perplexity {number(perplexity)}")
    if record.state != "finished":
        print(record.error)
        raise typer.Exit(1)


@app.command(epilog="Example: prunegpt trial show quickstart/pruned90")
def show(
    trial: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Trial id from `sweep status`, SWEEP/TRIAL, or SWEEP/GROUP: all its seeds.",
            autocompletion=complete.trials,
        ),
    ],
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Show a trial in detail.

    Configuration, stages, metrics, sparsity by layer, attempts and log files.
    """
    from prunegpt.store import Store

    with Store.open(root, create=False) as store:
        results = members(store, trial)
        attempts = store.attempts(results[0].id)
    if len(results) > 1:
        _show_seeds(results, root, as_json)
        return
    if as_json:
        print_json({**results[0].described(), "history": [as_data(attempt) for attempt in attempts]})
        return
    _print(results[0], root)
    print_attempts(attempts, root)


def members(store: "Store", reference: str) -> "list[TrialResult]":
    """The trial of an id or a name SWEEP/TRIAL, or all seeds of SWEEP/GROUP, in spec order.

    Raises:
        StoreError: there is none; the nearest names are listed.
    """
    from prunegpt.errors import StoreError, unknown

    try:
        return [store.result(int(reference) if reference.isdigit() else reference)]
    except StoreError:
        sweep, slash, name = reference.partition("/")
        trials = store.results(sweep) if slash else []
        found = [one for one in trials if one.group == name]
        if not trials:
            raise
    if not found:
        names = dict.fromkeys(name for one in trials for name in (one.name, one.group))
        raise StoreError(unknown(f"trial or group of {sweep}", name, names, f"`prunegpt sweep status {sweep}`"))
    return found


def _show_seeds(results: "Sequence[TrialResult]", root: Root, as_json: bool) -> None:
    """The seeds of one configuration, and their mean perplexity with its interval."""
    from prunegpt.cli.tables import print_table
    from prunegpt.report.measure import measure, stored_windows

    found = measure(results, stored_windows(root))
    low, high = (found.interval.low, found.interval.high) if found and found.interval else (None, None)
    if as_json:
        mean = {"mean": found.perplexity, "low": low, "high": high, "seeds": found.count} if found else None
        print_json({"group": results[0].group, "perplexity": mean, "trials": [one.described() for one in results]})
        return
    names = ("perplexity", "bits_per_byte", "sparsity", "tokens", "seconds")
    print_table(
        ["id", "trial", "seed", "state", *(name.replace("_", " ") for name in names)],
        ([str(one.id), one.name, str(one.seed), one.state, *map(one.metrics.get, names)] for one in results),
        title=f"{results[0].sweep}/{results[0].group}: {counted(len(results), 'seed')}",
        spare=("id", "bits per byte", "seconds"),
    )
    if found:
        shown, *ends = numbers(found.perplexity, low, high)
        kind = "Student's t over seeds" if found.count > 1 else "bootstrap over windows"
        print(f"mean perplexity {shown} (95% interval {ends[0]} to {ends[1]}, {kind}, n = {found.count})")
    print(f"One of them: {root.command('trial', 'show', results[0].address)}")


_METRICS = ("perplexity", "bits_per_byte", "sparsity", "sparsity_all", "tokens", "seconds")


def _print(result: "TrialResult", root: Root) -> None:
    from prunegpt.cli.tables import print_sparsities, print_table
    from prunegpt.records import chain_metrics
    from prunegpt.report.stored_model import stored_model

    print(f"{result.address} (id {result.id}): {result.state}" + (f", {result.reason}" if result.reason else ""))
    if result.error:
        print(f"  {result.error}")
    if result.plan.foreign:
        from prunegpt.report.logged import metrics_of

        about = result.plan.run.model_dump() if result.plan.run else {}
        print_table(["field", "value"], [[name, value] for name, value in about.items() if value], title="W&B run")
        print_table(["metric", "last value"], [list(one) for one in metrics_of(result)], title="Summary")
        print_table(["field", "value"], _flat(result.config), title="Configuration")
        return
    print_table(
        ["stage", "key", "cached", "perplexity", "bits/byte", "sparsity", "of all", "tokens trained", "seconds"],
        ([stage.kind, stage.key, stage.cached, *map(chain_metrics([stage]).get, _METRICS)] for stage in result.stages),
        title="Chain",
        spare=("key", "of all", "bits/byte", "cached"),
    )
    if result.evaluation:
        print(f"Protocol: {result.evaluation.protocol}; {result.evaluation.tokens:,} tokens scored.")
    for name, also in (result.final.also if result.final else {}).items():
        if also.perplexity is not None:
            print(f"{name}: perplexity {number(also.perplexity)}; {also.protocol}; {also.tokens:,} tokens scored.")
        if also.speed:
            print(f"{name}: {also.speed.words}; {also.protocol}.")
        for score in also.scores:
            spread = "" if score.stderr is None else f" ± {score.stderr:.4f}"
            value = "not finite" if score.value is None else f"{score.value:.4f}"
            documents = counted(score.documents, "document")
            print(f"{score.task}: {score.metric} {value}{spread}; {documents}, {also.protocol}.")
    if result.sparsity and result.sparsity.pruned:
        if result.sparsity.coverage is not None:
            print(
                f"Coverage: {result.sparsity.coverage:.1%} of the decoder's weights outside the embeddings were pruned."
            )
        print_sparsities(result.sparsity.by_tensor, title="Sparsity, counted from the weights")
    for stage in result.stages:
        if stage.kind == "shrink" and stage.layers:
            columns = list(dict.fromkeys(name for row in stage.layers for name in row))
            print_table(columns, ([row.get(name) for name in columns] for row in stage.layers), title="What could go")
    for note in (note for stage in result.stages for note in stage.notes):
        print(f"note: {note}")
    print_table(["field", "value"], _flat(result.config), title="Configuration")
    if model := stored_model(result, root):
        print(f"Model: {model.removed or model.source}")
        if not model.removed:
            print(f"In a folder of your own: {model.export}")


def _flat(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested configuration as dotted paths."""
    if isinstance(config, dict) and config:
        return [row for key, value in config.items() for row in _flat(value, f"{prefix}{key}.")]
    if isinstance(config, list) and any(isinstance(item, (dict, list)) for item in config):
        return [row for index, value in enumerate(config) for row in _flat(value, f"{prefix}{index}.")]
    return [(prefix.rstrip("."), str(config))]


@app.command(hidden=True)
def serve(processes: ProcessesOption = 1) -> None:
    """Internal: run attempts whose folders are read as JSON lines from standard input."""
    from prunegpt.launch.worker import serve_attempts

    run = _runner(processes, trust_remote_code=True)  # the coordinator that sends them has planned them
    serve_attempts(lambda folder: run(folder).state)


def _runner(processes: int, trust_remote_code: bool) -> "Callable[[Path], AttemptRecord]":
    if processes > 1:
        from prunegpt.launch.distributed import run_together
        from prunegpt.launch.job import BY_HAND, TRIAL

        command = (sys.executable, *(TRIAL if trust_remote_code else BY_HAND))
        return lambda folder: run_together(folder, processes, command)
    from prunegpt.trial import run_trial

    return lambda folder: run_trial(folder, trust_remote_code=trust_remote_code)


def print_failures(results: "Sequence[TrialResult]", store: "Store", root: Root) -> None:
    """Trials that came to no good end: why, and the end of their logs."""
    from prunegpt.records import EARLY_STOP

    failed = [result for result in results if result.state in ("failed", "diverged", "stopped")]
    for result in failed[:_SHOWN]:
        print(f"{result.address}: {result.state} ({result.reason}): {located(result.error.strip())}")
        ran = [attempt for attempt in store.attempts(result.id) if attempt.folder]
        if ran and result.reason not in ("dependency", EARLY_STOP):
            for line in ran[-1].log.splitlines()[-_LINES:]:
                print(f"    {line}")
            print(f"  log: {_log(root, ran[-1].folder)}")
    if len(failed) > _SHOWN:
        print(f"and {len(failed) - _SHOWN} more")


def print_attempts(attempts: "Sequence[AttemptRow]", root: Root) -> None:
    """All attempts of a trial, and the end of the last log where that one did not finish."""
    from prunegpt.cli.tables import print_table

    if not attempts:
        print("No attempt yet.")
        return
    print_table(
        ["attempt", "state", "reason", "then", "started", "seconds", "log"],
        (
            [
                str(one.number),
                one.state,
                one.reason,
                "tried again" if one.outcome == "retried" else one.outcome,
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.started)),
                number(round(max(0.0, one.ended - one.started), 1)) if one.ended else "",
                f"{one.folder}/{_LOG}" if one.folder else "no worker ran",
            ]
            for one in attempts
        ),
        title="Attempts",
        spare=("log", "then"),
    )
    ran = [one for one in attempts if one.folder]
    if ran and ran[-1].log:
        print(f"The end of the log of attempt {ran[-1].number}:")
        for line in ran[-1].log.splitlines():
            print(f"    {line}")
    if ran:
        print(f"Log: {_log(root, ran[-1].folder)}")


def as_data(attempt: "AttemptRow") -> dict[str, Any]:
    """An attempt for a script."""
    names = ("number", "state", "reason", "error", "outcome", "started", "ended")
    told = {name: getattr(attempt, name) for name in names}
    return {**told, "log": f"{attempt.folder}/{_LOG}" if attempt.folder else None, "last_lines": attempt.log}


def _log(root: Root, folder: str) -> Path:
    return root.path / folder / _LOG
