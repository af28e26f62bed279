"""The columns a table may have, by name. Labels are measured: what can be counted is read from the record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from prunegpt.errors import UnknownPartError, unknown
from prunegpt.records import Evaluation, SparsityRecord, TrialResult, task_scores
from prunegpt.report.config import MISSING, allocations, paths, resolved, value_at
from prunegpt.report.format import Value, ValueKind, plain
from prunegpt.report.logged import metrics_of
from prunegpt.report.rows import Row
from prunegpt.spec.code import method_label
from prunegpt.spec.columns import COLUMNS as ABOUT
from prunegpt.spec.columns import (
    CONFIG,
    CURVE,
    LOGGED,
    REPORTED,
    CurveValue,
    check_column,
    column_parts,
    curve_value,
    is_below,
)
from prunegpt.spec.metrics import MEAN, is_speed, is_task
from prunegpt.spec.outline import COVERED
from prunegpt.spec.schema import GradualSpec, PruneSpec

NOT_APPLICABLE = "N/A"
TOLERATED = 0.5  # points between the sparsity asked for and measured
_MOST_ASKED = 50  # trials whose paths are offered where a path is not found


@dataclass(frozen=True)
class Column:
    """What a column shows.

    `extract` gives the values of the runs behind a row, or one value of the row itself. A measured column sees only the
    runs whose perplexity is a number.
    """

    header: str
    extract: Callable[[Row], Sequence[Value]]
    kind: ValueKind
    measured: bool = False


def _row(header: str, of: Callable[[Row], Value], kind: ValueKind = "text") -> Column:
    return Column(header, lambda row: (of(row),), kind)


def _each(header: str, of: Callable[[TrialResult], Value], kind: ValueKind = "text") -> Column:
    return Column(header, lambda row: [of(trial) for trial in row.trials], kind)


def _measured(header: str, of: Callable[[TrialResult], Value], kind: ValueKind) -> Column:
    return Column(header, lambda row: [of(trial) for trial in row.finished], kind, measured=True)


def _evaluated(header: str, of: Callable[[Evaluation], Value], kind: ValueKind) -> Column:
    return _measured(header, lambda trial: of(trial.evaluation) if trial.evaluation else None, kind)


def _timed(header: str, metric: str, kind: ValueKind) -> Column:
    return _evaluated(header, lambda found: found.speed.metrics[metric] if found.speed else None, kind)


def _counted(header: str, of: Callable[[SparsityRecord], Value], kind: ValueKind = "percent") -> Column:
    return _measured(header, lambda trial: of(trial.sparsity) if trial.sparsity else None, kind)


def _percent(share: float) -> float:
    return round(100 * share, 10)  # without the noise of multiplying


def _prunings(trial: TrialResult) -> list[PruneSpec]:
    """Every pruning config of the chain, one-shot and gradual."""
    return [stage.pruning for stage in trial.plan.stages if stage.pruning]


def distilled(trial: TrialResult) -> str:
    """Yes where the chain has a distillation, else No."""
    return "Yes" if any(stage.kind == "distill" for stage in trial.plan.stages) else "No"


def teacher(trial: TrialResult) -> str:
    """What the teachers of the chain are called, such as gpt2(zero-shot); N/A where there is none."""
    keys = [stage.teacher for stage in trial.plan.stages if stage.teacher]
    return ", ".join(dict.fromkeys(trial.plan.teachers.get(key, key) for key in keys)) or NOT_APPLICABLE


def layer(trial: TrialResult) -> Value:
    """The index of the one decoder layer that was pruned; N/A where it was none or several.

    Read from the record; from the plan while there is none.
    """
    if trial.sparsity is not None:
        layers = trial.sparsity.layers
    else:
        layers = tuple(index for pruning in _prunings(trial) for index in pruning.layers)
    return layers[0] if len(set(layers)) == 1 else NOT_APPLICABLE


def method(trial: TrialResult) -> str:
    """Criterion or solver of each pruning, with the schedule where it is gradual, and what refines and repairs it."""
    names = [
        method_label(pruning.method)
        + (f" ({_course(pruning)})" if isinstance(pruning, GradualSpec) else "")
        + (f" + refine ({pruning.refine})" if pruning.refine else "")
        + (f" + repair ({pruning.repair.scope})" if pruning.repair else "")
        for pruning in _prunings(trial)
    ]
    return " + ".join(names) or NOT_APPLICABLE


def _course(pruning: GradualSpec) -> str:
    """The schedule of a pruning, and the mode where it is not the usual one."""
    return pruning.schedule + ("" if pruning.mode == "projected" else f", {pruning.mode}")


def pattern(trial: TrialResult) -> str:
    """unstructured, N:M or [a, b] of each pruning."""
    return " + ".join(dict.fromkeys(pruning.pattern for pruning in _prunings(trial))) or NOT_APPLICABLE


def allocation(trial: TrialResult) -> str:
    """How the budget of each pruning was spread."""
    return " + ".join(dict.fromkeys(name for name in allocations(trial) if name)) or NOT_APPLICABLE


def asked_sparsity(trial: TrialResult) -> float | None:
    """The share of zeros that the last pruning of the chain was asked for."""
    targets = [stage.sparsity.target for stage in trial.stages if stage.sparsity and stage.sparsity.target is not None]
    return targets[-1] if targets else None


def planned_sparsity(trial: TrialResult) -> float | None:
    """The share of zeros that the plan's last pruning asks for; None where there is none, or it leaves that open."""
    shares = [pruning.sparsity for pruning in _prunings(trial)]
    return shares[-1] if shares else None


def partly_covered(trial: TrialResult) -> float | None:
    """The share of the weights outside the embeddings that was pruned, where it is low and nobody asked for that."""
    if trial.sparsity is None or trial.sparsity.coverage is None or trial.sparsity.coverage >= COVERED:
        return None
    return None if any(pruning.names_tensors for pruning in _prunings(trial)) else trial.sparsity.coverage


def off_target(trial: TrialResult) -> bool:
    """Whether the sparsity measured is more than half a point from what was asked for."""
    asked = asked_sparsity(trial)
    if asked is None or trial.sparsity is None:
        return False
    return abs(_percent(asked) - _percent(trial.sparsity.pruned)) > TOLERATED + 1e-9


def before_training(trial: TrialResult) -> float | None:
    """The perplexity that the last training of the chain began with; None where nothing trains, or it is not known."""
    trained = [place for place, stage in enumerate(trial.stages) if stage.train_tokens and stage.kind != "pretrain"]
    found = trial.stages[trained[-1] - 1].evaluation if trained and trained[-1] else None
    return found.perplexity if found else None


_COLUMNS = {
    "trial": _row("Trial", lambda row: row.name),
    "model": _row("Model", lambda row: row.label),
    "state": _row("State", lambda row: row.state_text),
    "sparsity": _counted("Sparsity", lambda found: _percent(found.pruned)),
    "sparsity_all": _counted("Sparsity of all", lambda found: _percent(found.overall)),
    "parameters": _counted("Parameters", lambda found: found.parameters, "count"),
    "nonzero": _counted("Non-zero", lambda found: found.nonzero, "count"),
    "bytes": _measured("Bytes", lambda trial: trial.final.bytes if trial.final else None, "bytes"),
    "coverage": _counted("Coverage", lambda found: None if found.coverage is None else _percent(found.coverage)),
    "perplexity": _evaluated("Perplexity", lambda found: found.perplexity, "loss"),
    "before": _measured("Before training", before_training, "loss"),
    "difference": Column(
        "Difference", lambda row: (row.standing.difference if row.standing else None,), "loss", measured=True
    ),
    "beside_median": Column(
        "Beside the median", lambda row: (row.typical.ratio.value if row.typical else None,), "number", measured=True
    ),
    "speedup": _timed("Speed-up", "speedup", "ratio"),
    "speedup:prefill": _timed("Prefill speed-up", "speedup:prefill", "ratio"),
    "decode": _timed("Decode tokens/s", "decode", "rate"),
    "prefill": _timed("Prefill tokens/s", "prefill", "rate"),
    "first_token": _timed("First token (s)", "first_token", "rate"),
    "memory": _timed("Memory", "memory", "bytes"),
    "distilled": _each("Distilled", distilled),
    "teacher": _each("Teacher", teacher),
    "layer": _each("Layer Pruned", layer),
    "method": _each("Method", method),
    "pattern": _each("Pattern", pattern),
    "allocation": _each("Allocation", allocation),
    "stages": _each("Stages", lambda trial: " → ".join(stage.kind for stage in trial.planned) or NOT_APPLICABLE),
    "protocol": _evaluated("Protocol", lambda found: found.protocol, "text"),
    "bits_per_byte": _evaluated("Bits per byte", lambda found: found.bits_per_byte, "bits"),
    "word_perplexity": _evaluated("Word perplexity", lambda found: found.word_perplexity, "loss"),
    "tokens": _measured("Tokens", lambda trial: sum(stage.train_tokens for stage in trial.stages), "count"),
    "seconds": _measured("Seconds", lambda trial: sum(stage.seconds for stage in trial.stages), "seconds"),
    "device_seconds": _measured(
        "Device seconds", lambda trial: sum(stage.seconds * stage.devices for stage in trial.stages), "seconds"
    ),
    "peak_memory": _measured(
        "Peak memory",
        lambda trial: max((stage.peak_memory for stage in trial.stages if stage.peak_memory), default=None),
        "bytes",
    ),
    "device": _measured(
        "Device",
        lambda trial: ", ".join(dict.fromkeys(stage.device for stage in trial.stages if stage.device)) or None,
        "text",
    ),
    "seeds": _row("Seeds", lambda row: len(row.finished), "count"),
    "reported": _row("Reported", lambda row: None, "loss"),
}
COLUMNS: Mapping[str, Column] = {name: _COLUMNS[name] for name in ABOUT}


def column(name: str, trials: Sequence[TrialResult] = ()) -> Column:
    """The column of that name, or of `config:PATH`.

    Args:
        name: a name of COLUMNS, config: and a path of the resolved configuration, or logged: and a W&B run's metric.
        trials: those of the table; a path must be found in one of them, where there are any.

    Raises:
        UnknownPartError: no such column, or no trial has that path; the nearest names are listed.
    """
    if name.startswith(LOGGED):
        metric = name.removeprefix(LOGGED)
        return _each(metric, lambda trial: dict(metrics_of(trial)).get(metric), "number")
    if is_task(name):
        return _task(name, trials)
    if name.startswith(CURVE) and (value := curve_value(name.removeprefix(CURVE))):
        return _curve(value, trials)
    if is_below(name, f"{REPORTED}:"):
        beside = column(name.removeprefix(f"{REPORTED}:"), trials)
        return replace(COLUMNS[REPORTED], header=f"{beside.header}, reported", kind=beside.kind)
    if not name.startswith(CONFIG):
        base, evaluation = column_parts(name)
        if base not in COLUMNS:
            check_column(name)
        found = COLUMNS[base]
        if not evaluation:
            return found
        kind = "speed" if is_speed(name) else "text"
        planned = (one for trial in trials for one in trial.plan.evaluations if one.evaluate.kind == kind)
        known = dict.fromkeys(one.name for one in planned if one.name)
        if trials and evaluation not in known and name != base:
            raise UnknownPartError(unknown("evaluation", evaluation, known))
        header = found.header if name == base else f"{found.header} ({evaluation})"
        return replace(found, header=header, extract=lambda row: found.extract(row.under(evaluation)))
    path = name.removeprefix(CONFIG)
    if trials and all(value_at(trial, path) is MISSING for trial in trials):
        valid = dict.fromkeys(valid for trial in trials[:_MOST_ASKED] for valid in paths(resolved(trial)))
        raise UnknownPartError(unknown("config path", path, valid))

    def of(trial: TrialResult) -> Value:
        found = value_at(trial, path)
        return None if found is MISSING else plain(found)

    return _each(path, of, "number")


def _curve(value: CurveValue, trials: Sequence[TrialResult]) -> Column:
    """The column of what a curve came to."""
    finished = [trial for trial in trials if trial.state == "finished"]
    if finished and not any(value.path in trial.curves for trial in finished):
        raise UnknownPartError(
            f"a column of a curve must be of one that a trial has; {value.path} is of none. "
            f"`prunegpt sweep fields {finished[0].sweep}` lists them."
        )
    return _measured(value.label, lambda trial: trial.curves.get(value.path), "number")


def _task(name: str, trials: Sequence[TrialResult]) -> Column:
    """The column of a score of tasks, in percent."""
    known = dict.fromkeys(key for trial in trials for key in task_scores(trial.scores))
    if known and name not in known:
        raise UnknownPartError(unknown("score", name, known))
    header = "Mean" if name == MEAN else name.partition(":")[2].replace("/", " ")

    def value(trial: TrialResult) -> Value:
        found = task_scores(trial.scores).get(name)
        return None if found is None else _percent(found)

    return _measured(header, value, "percent")
