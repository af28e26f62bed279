"""The table of runs that W&B clients have logged: what each says of itself, every metric by its own name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunegpt.records import TrialResult, leaves
from prunegpt.report.cells import Cell, Heading, Table, TableRow, in_one_notation
from prunegpt.report.format import EMPTY, Value, plain, text_of
from prunegpt.report.provenance import gather

_ABOUT = ("Run", "Name", "State", "Group", "Job type", "Tags")


def logged_table(sweep: str, trials: Sequence[TrialResult]) -> Table:
    """One row per run: what distinguishes it, the settings that differ, and the last value of every metric.

    Nothing is a perplexity here, no row is best, and nothing is a mean: nobody knows how others have measured.
    """
    settings = {trial.id: dict(flat(trial.config)) for trial in trials}
    metrics = {trial.id: dict(metrics_of(trial)) for trial in trials}
    paths = [path for path in _names(settings) if len({settings[one.id].get(path) for one in trials}) > 1]
    names = _names(metrics)
    about = [_about(trial) for trial in trials]
    shown = [place for place, head in enumerate(_ABOUT) if head in ("Run", "State") or any(row[place] for row in about)]
    headings = [_ABOUT[place] for place in shown]
    headings += [f"config {path}" if path in names or path in headings else path for path in paths]
    headings += [f"{name} (metric)" if name in headings else name for name in names]
    columns = tuple(Heading(text, "number" if place >= len(shown) else "text") for place, text in enumerate(headings))
    rows = [
        TableRow(
            trial=trial.name,
            state=trial.state,
            cells=tuple(
                Cell(value, EMPTY if value in (None, "") else text_of(value))
                for value in (
                    *(row[place] for place in shown),
                    *(settings[trial.id].get(path) for path in paths),
                    *(metrics[trial.id].get(name) for name in names),
                )
            ),
            trials=(trial.name,),
        )
        for trial, row in zip(trials, about, strict=True)
    ]
    return Table(
        title=f"All runs of {sweep}",
        name="runs",
        columns=columns,
        rows=in_one_notation(columns, rows),
        provenance=gather(trials).line,
    )


def is_logged(trials: Sequence[TrialResult]) -> bool:
    """Whether there are trials, and all of them are runs that W&B clients have logged."""
    return bool(trials) and all(trial.plan.foreign for trial in trials)


def metrics_of(trial: TrialResult) -> Iterator[tuple[str, Value]]:
    """The summary of a run, by its own names; W&B's own entries, media and lists are left out."""
    return ((name, value) for name, value in flat(trial.logged) if not name.startswith("_"))


def flat(node: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    """The plain values of a mapping by dotted names."""
    return ((name, plain(value)) for name, value in leaves(node) if not isinstance(value, (Mapping, list, tuple)))


def _about(trial: TrialResult) -> tuple[str, ...]:
    run = trial.plan.run
    if run is None:
        return trial.name, trial.label, trial.state, "", "", ""
    name = "" if trial.label == run.id else trial.label
    return run.id, name, trial.state, run.group, run.job_type, ", ".join(run.tags)


def _names(values: Mapping[int, Mapping[str, Value]]) -> list[str]:
    return list(dict.fromkeys(name for one in values.values() for name in one))
