"""One field of trials, and those that do not depend on what was swept, logged or written in configurations."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from prunegpt.records import EARLY_STOP, TrialResult
from prunegpt.report import columns
from prunegpt.report.format import is_number

FieldKind = Literal["text", "list", "flag", "number", "loss", "percent", "count", "seconds", "time"]
Origin = Literal["trial", "swept", "logged", "curve", "config"]

NUMERIC = ("number", "loss", "percent", "count", "seconds", "time")


@dataclass(frozen=True)
class TrialField:
    """One thing that is known of trials.

    Attributes:
        key: what it is asked for by; unique.
        label: the head of its column.
        kind: of its values. `percent` are shares between 0 and 1, `seconds` wall time, `time` since the epoch.
        about: what it is, in words.
        of: its value of a trial; None where the trial has none.
        measured: whether it comes from an evaluation, so that only values with equal comparison keys have a mean.
        evaluation: the name of that evaluation; empty where it is the first.
    """

    key: str
    label: str
    kind: FieldKind
    about: str
    of: Callable[[TrialResult], Any]
    origin: Origin = "trial"
    measured: bool = False
    evaluation: str = ""

    @property
    def name(self) -> str:
        """The name in filters: the key without its origin."""
        return self.key if self.origin == "trial" else self.key.partition(".")[2]

    @property
    def numeric(self) -> bool:
        return self.kind in NUMERIC


def _evaluated(name: str) -> Callable[[TrialResult], Any]:
    return lambda trial: getattr(trial.measured, name) if trial.measured else None


def _text(trial: TrialResult) -> str | None:
    return trial.measured.comparison_key.text if trial.measured else None


def _counted(name: str) -> Callable[[TrialResult], Any]:
    return lambda trial: getattr(trial.sparsity, name) if trial.state == "finished" and trial.sparsity else None


def _kept(trial: TrialResult) -> int | None:
    return trial.final.bytes if trial.final else None


def _trained(trial: TrialResult) -> int | None:
    return None if trial.plan.foreign else sum(stage.train_tokens for stage in trial.stages)


def _spent(trial: TrialResult) -> float | None:
    return sum(stage.seconds for stage in trial.stages) if trial.stages and not trial.plan.foreign else None


def run_says(name: str) -> Callable[[TrialResult], Any]:
    """What a W&B run says of itself."""
    return lambda trial: getattr(trial.plan.run, name) or None if trial.plan.run else None


def _said(of: Callable[[TrialResult], Any]) -> Callable[[TrialResult], Any]:
    """What a column of tables says, where it applies."""

    def value(trial: TrialResult) -> Any:
        found = of(trial)
        return None if found == columns.NOT_APPLICABLE else found

    return value


def _own(name: str) -> Callable[[TrialResult], Any]:
    """Of a trial of a spec alone: a run of somebody else's script has no seed that we know of."""
    read = attrgetter(name)
    return lambda trial: None if trial.plan.foreign or read(trial) == "" else read(trial)


def display_name(trial: TrialResult) -> str:
    """What people call it: its name, or that which a W&B client has given its run."""
    return trial.label if trial.plan.foreign and trial.label else trial.name


ALWAYS = (
    TrialField("name", "Trial", "text", "name in the sweep; of a W&B run its id", attrgetter("name")),
    TrialField("label", "Model", "text", "label of the model; of a W&B run its display name", attrgetter("label")),
    TrialField("state", "State", "text", "waiting, running, finished, failed, …", attrgetter("state")),
)
OURS = (  # of trials of a spec
    TrialField("perplexity", "Perplexity", "loss", "after the last stage", _evaluated("perplexity"), measured=True),
    TrialField("loss", "Loss", "number", "nats per token", _evaluated("loss"), measured=True),
    TrialField("bits_per_byte", "Bits per byte", "number", "of text", _evaluated("bits_per_byte"), measured=True),
    TrialField("word_perplexity", "Word perplexity", "loss", "by words", _evaluated("word_perplexity"), measured=True),
    TrialField("sparsity", "Sparsity", "percent", "zeros in the pruned tensors, 0 to 1", _counted("pruned")),
    TrialField("sparsity_all", "Sparsity, all weights", "percent", "zeros in all weights, 0 to 1", _counted("overall")),
    TrialField("coverage", "Coverage", "percent", "weights selected for pruning, 0 to 1", _counted("coverage")),
    TrialField("target", "Target", "percent", "sparsity that was asked for, 0 to 1", columns.asked_sparsity),
    TrialField("parameters", "Parameters", "count", "weights, zeros included", _counted("parameters")),
    TrialField("size", "Weights", "count", "weights that are not zero", lambda trial: trial.metrics["size"]),
    TrialField("bytes", "Bytes", "count", "of the files of its weights", _kept),
    TrialField("tokens", "Tokens", "count", "trained on", _trained),
    TrialField("method", "Method", "text", "criterion or solver, with its schedule", _said(columns.method)),
    TrialField("pattern", "Pattern", "text", "unstructured, N:M or block", _said(columns.pattern)),
    TrialField("allocation", "Allocation", "text", "how the budget was spread over tensors", _said(columns.allocation)),
    TrialField("layer", "Layer", "number", "decoder layer, where exactly one was pruned", _said(columns.layer)),
    TrialField("distilled", "Distilled", "text", "Yes where the chain has a distillation", columns.distilled),
    TrialField("teacher", "Teacher", "text", "what taught it", _said(columns.teacher)),
    TrialField("seed", "Seed", "number", "of its random numbers", _own("seed")),
    TrialField("search", "Search", "text", "that suggested it", _own("plan.search")),
    TrialField("split", "Measured on", "text", "split of the dataset", _evaluated("split")),
    TrialField("text", "Text", "text", "fingerprint of the text it was measured on", _text),
    TrialField("protocol", "Protocol", "text", "how it was measured", _evaluated("protocol")),
)
FOREIGN = (  # of runs that W&B clients have logged
    TrialField("job_type", "Job type", "text", "as the run says", run_says("job_type")),
    TrialField("host", "Host", "text", "where it ran", run_says("host")),
    TrialField("program", "Program", "text", "what ran", run_says("program")),
)
LAST = (
    TrialField("started", "Started", "time", "of the last attempt, seconds since the epoch", attrgetter("started")),
    TrialField("ended", "Ended", "time", "of the last attempt, seconds since the epoch", attrgetter("ended")),
    TrialField("attempts", "Attempts", "count", "executions", attrgetter("attempts")),
    TrialField("early_stopped", "Stopped early", "flag", "others did better", lambda trial: trial.reason == EARLY_STOP),
    TrialField("reason", "Reason", "text", "why it failed", lambda trial: trial.reason or None),
    TrialField("error", "Error", "text", "its message", lambda trial: trial.error or None),
    TrialField("implicit", "Only a teacher", "flag", "no trial of the spec", attrgetter("implicit")),
)


def _tags(trial: TrialResult) -> list[str]:
    return list(trial.plan.run.tags) if trial.plan.run else []


def _group(trial: TrialResult) -> Any:
    if trial.plan.foreign:
        return trial.plan.run.group or None if trial.plan.run else None
    return trial.group


def _lasted(trial: TrialResult) -> float | None:
    runtime: Any = trial.logged.get("_runtime")
    return float(runtime) if is_number(runtime) else None


GROUP = TrialField("group", "Group", "text", "the name without the seed; of a W&B run its group", _group)
TAGS = TrialField("tags", "Tags", "list", "of a W&B run", _tags)
NAME = TrialField("label", "Name", "text", ALWAYS[1].about, ALWAYS[1].of)  # of W&B runs
LASTED = TrialField("seconds", "Time", "seconds", "from start to end", _lasted)
SPENT = TrialField("seconds", "Time with shared", "seconds", "wall time of all its stages, in seconds", _spent)
