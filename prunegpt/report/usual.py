"""The table of a sweep that declares none: its trials, with what was swept."""

from collections.abc import Sequence
from typing import Any

from prunegpt.records import TrialResult
from prunegpt.report.config import MISSING, value_at
from prunegpt.spec.columns import CONFIG
from prunegpt.spec.schema import ColumnSpec, RowSpec, TableSpec

_BEFORE = ("trial", "state", "stages")
_AFTER = ("sparsity", "perplexity", "tokens", "seconds")
_PLAIN = (bool, int, float, str, type(None))
_MOST_SWEPT = 6
_MANY = 200  # trials above which nobody reads all
_BEST = 50


def usual_table(sweep: str, trials: Sequence[TrialResult]) -> TableSpec:
    """What `tables` could have said of these trials.

    Only swept paths with plain values get a column, the first six; a chain of stages has one anyway. Of more than
    200 trials the best 50 are shown.
    """
    swept: list[str] = []
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for path, value in trial.swept.items():
            if path not in values and value_at(trial, path) is not MISSING:
                swept.append(path)
            values.setdefault(path, []).append(value)
    swept = [path for path in swept if all(isinstance(value, _PLAIN) for value in values[path])][:_MOST_SWEPT]
    many = len(trials) > _MANY
    return TableSpec(
        title=f"The best {_BEST} of {len(trials):,} trials of {sweep}" if many else f"All trials of {sweep}",
        name="trials",
        rows=(RowSpec(trial="*", best=_BEST if many else None),),
        columns=(
            *(ColumnSpec(value=name) for name in _BEFORE),
            *(ColumnSpec(value=f"{CONFIG}{path}", header=_header(path, swept)) for path in swept),
            *(ColumnSpec(value=name) for name in _AFTER),
        ),
    )


def _header(path: str, others: Sequence[str]) -> str:
    """The last part of a path, where nothing else is called that."""
    last = path.rpartition(".")[2]
    alike = [other for other in others if other.rpartition(".")[2] == last]
    return last.replace("_", " ") if len(alike) == 1 and last not in (*_BEFORE, *_AFTER) else path
