"""The columns a table may have, by name. Labels are measured: what can be counted is read from the record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunegpt.errors import UnknownPartError, unknown
from prunegpt.records import Evaluation, SparsityRecord, TrialResult
from prunegpt.report.config import MISSING, paths, resolved, value_at
from prunegpt.report.format import Kind, Value, plain
from prunegpt.report.rows import Row

NOT_APPLICABLE = "N/A"
CONFIG = "config:"
TOLERATED = 0.5  # points between the sparsity asked for and measured
_STARTS = ("load", "pretrain")


@dataclass(frozen=True)
class Column:
    """What a column shows.

    `extract` gives the values of the runs behind a row, or one value of the row itself. A measured column sees only the
    runs whose perplexity is a number.
    """

    header: str
    extract: Callable[[Row], Sequence[Value]]
    kind: Kind
    about: str  # meaning and unit, for the reference
    measured: bool = False


def _row(header: str, of: Callable[[Row], Value], about: str, kind: Kind = "text") -> Column:
    return Column(header, lambda row: (of(row),), kind, about)


def _each(header: str, of: Callable[[TrialResult], Value], about: str, kind: Kind = "text") -> Column:
    return Column(header, lambda row: [of(trial) for trial in row.trials], kind, about)


def _measured(header: str, of: Callable[[TrialResult], Value], kind: Kind, about: str) -> Column:
    return Column(header, lambda row: [of(trial) for trial in row.finished], kind, about, measured=True)


def _evaluated(header: str, of: Callable[[Evaluation], Value], kind: Kind, about: str) -> Column:
    return _measured(header, lambda trial: of(trial.evaluation) if trial.evaluation else None, kind, about)


def _counted(header: str, of: Callable[[SparsityRecord], Value], about: str) -> Column:
    return _measured(header, lambda trial: of(trial.sparsity) if trial.sparsity else None, "percent", about)


def _percent(share: float) -> float:
    return round(100 * share, 10)  # without the noise of multiplying


def _stages(trial: TrialResult) -> list[Mapping[str, Any]]:
    """The planned stages that the spec names; from the record where there is no plan."""
    planned = trial.plan.get("stages") or [{"kind": stage.kind} for stage in trial.stages]
    return [stage for stage in planned if stage.get("kind") not in _STARTS]


def _body(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    return stage.get(stage.get("kind", "")) or {}


def _pruning(trial: TrialResult) -> list[Mapping[str, Any]]:
    """Every pruning config of the chain, one-shot and gradual."""
    found = []
    for stage in _stages(trial):
        body = _body(stage)
        pruning = body if stage["kind"] == "prune" else body.get("prune")
        if pruning:
            found.append(pruning)
    return found


def distilled(trial: TrialResult) -> str:
    """Yes where the chain has a distillation, else No."""
    return "Yes" if any(stage["kind"] == "distill" for stage in _stages(trial)) else "No"


def teacher(trial: TrialResult) -> str:
    """What the teachers of the chain are called, such as gpt2(zero-shot); N/A where there is none."""
    labels = trial.plan.get("teachers") or {}
    keys = [stage["teacher"] for stage in _stages(trial) if stage.get("teacher")]
    return ", ".join(dict.fromkeys(labels.get(key, key) for key in keys)) or NOT_APPLICABLE


def layer(trial: TrialResult) -> Value:
    """The index of the one decoder block that was pruned; N/A where it was none or several.

    Read from the record; from the plan while there is none.
    """
    if trial.sparsity is not None:
        layers = trial.sparsity.layers
    else:
        layers = tuple(index for pruning in _pruning(trial) for index in pruning.get("layers") or ())
    return layers[0] if len(set(layers)) == 1 else NOT_APPLICABLE


def method(trial: TrialResult) -> str:
    """Criterion or solver of each pruning, with the schedule where it is gradual."""
    names = [
        f"{pruning.get('method', 'magnitude')} ({pruning['schedule']})"
        if "schedule" in pruning
        else str(pruning.get("method", "magnitude"))
        for pruning in _pruning(trial)
    ]
    return " + ".join(names) or NOT_APPLICABLE


def pattern(trial: TrialResult) -> str:
    """unstructured, N:M or [a, b] of each pruning."""
    names = dict.fromkeys(str(pruning.get("pattern", "unstructured")) for pruning in _pruning(trial))
    return " + ".join(names) or NOT_APPLICABLE


def asked_sparsity(trial: TrialResult) -> float | None:
    """The share of zeros that the last pruning of the chain was asked for."""
    targets = [stage.sparsity.target for stage in trial.stages if stage.sparsity and stage.sparsity.target is not None]
    return targets[-1] if targets else None


def off_target(trial: TrialResult) -> bool:
    """Whether the sparsity measured is more than half a point from what was asked for."""
    asked = asked_sparsity(trial)
    if asked is None or trial.sparsity is None:
        return False
    return abs(_percent(asked) - _percent(trial.sparsity.pruned)) > TOLERATED + 1e-9


def _chain(trial: TrialResult) -> str:
    return " → ".join(stage["kind"] for stage in _stages(trial)) or NOT_APPLICABLE


def _devices(trial: TrialResult) -> str | None:
    return ", ".join(dict.fromkeys(stage.device for stage in trial.stages if stage.device)) or None


COLUMNS: Mapping[str, Column] = {
    "trial": _row("Trial", lambda row: row.name, "name of the trial, or the name its seeds share"),
    "model": _row("Model", lambda row: row.label, "label of the row, else of the model"),
    "state": _row("State", lambda row: row.state_text, "how far the row is: finished, running, failed, ..."),
    "sparsity": _counted(
        "Sparsity", lambda found: _percent(found.pruned), "zeros counted in the tensors selected for pruning, percent"
    ),
    "sparsity_all": _counted(
        "Sparsity of all", lambda found: _percent(found.overall), "zeros counted in all parameters, percent"
    ),
    "perplexity": _evaluated(
        "Perplexity", lambda found: found.perplexity, "loss", "measured after the last stage, with its interval"
    ),
    "difference": Column(
        "Difference",
        lambda row: (row.standing.difference if row.standing else None,),
        "loss",
        "perplexity less that of the best row of the same protocol, with its interval",
        measured=True,
    ),
    "distilled": _each("Distilled", distilled, "Yes where the chain has a distillation"),
    "teacher": _each("Teacher", teacher, "what taught it, such as gpt2(zero-shot)"),
    "layer": _each("Layer Pruned", layer, "index of the decoder block, where exactly one was pruned"),
    "method": _each("Method", method, "criterion or solver, with the schedule where pruning is gradual"),
    "pattern": _each("Pattern", pattern, "unstructured, N:M or block"),
    "stages": _each("Stages", _chain, "the chain, such as finetune → prune"),
    "protocol": _evaluated(
        "Protocol", lambda found: found.protocol, "text", "how, on what and with which tokeniser it was measured"
    ),
    "bits_per_byte": _evaluated(
        "Bits per byte", lambda found: found.bits_per_byte, "bits", "loss in bits by bytes of text; for any tokeniser"
    ),
    "word_perplexity": _evaluated(
        "Word perplexity", lambda found: found.word_perplexity, "loss", "perplexity by words; for any tokeniser"
    ),
    "tokens": _measured(
        "Tokens", lambda trial: sum(stage.train_tokens for stage in trial.stages), "count", "tokens trained on"
    ),
    "seconds": _measured(
        "Seconds",
        lambda trial: sum(stage.seconds for stage in trial.stages),
        "seconds",
        "wall time of computing all stages, whoever did",
    ),
    "device": _measured("Device", _devices, "text", "what computed the stages"),
    "seeds": _row("Seeds", lambda row: len(row.finished), "runs the row is the mean of", "count"),
    "reported": _row("Reported", lambda row: None, "the published figure, as it was printed", "loss"),
}


def column(name: str, trials: Sequence[TrialResult] = ()) -> Column:
    """The column of that name, or of `config:PATH`.

    Args:
        name: a name of COLUMNS, or config: and a path of the resolved configuration.
        trials: those of the table; a path must be found in one of them, where there are any.

    Raises:
        UnknownPartError: no such column, or no trial has that path; the nearest names are listed.
    """
    if not name.startswith(CONFIG):
        if name not in COLUMNS:
            raise UnknownPartError(unknown("column", name, [*COLUMNS, f"{CONFIG}PATH"]))
        return COLUMNS[name]
    path = name.removeprefix(CONFIG)
    if trials and all(value_at(trial, path) is MISSING for trial in trials):
        valid = dict.fromkeys(valid for trial in trials for valid in paths(resolved(trial)))
        raise UnknownPartError(unknown("config path", path, valid))

    def value(trial: TrialResult) -> Value:
        found = value_at(trial, path)
        return None if found is MISSING else plain(found)

    return _each(path, value, f"{path} of the resolved configuration", "number")
