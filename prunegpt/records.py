"""What crosses from a worker to the coordinator: frozen, written whole, no torch."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from prunegpt.redact import redact
from prunegpt.root import Root, read_sealed, write_text
from prunegpt.spec.metrics import MEASURED
from prunegpt.spec.plan import StagePlan, TrialPlan

TrialState = Literal["waiting", "running", "finished", "failed", "diverged", "stopped"]
TOTAL_STEPS = "total_steps"  # the point with the number of steps of a stage: optimizer steps, or layers to prune
CALIBRATED = "calibrated"  # the curve of a calibration pass, 0 to 1, over what it passes through
LAYERS_PRUNED = "layers_pruned"  # the curve of one-shot pruning: weight matrices that are done
DISK_FULL = "disk-full"  # the reason of a trial that failed because there was no room for what it writes
EARLY_STOP = "early-stop"  # the reason of a trial that was stopped because others did better


class Record(BaseModel):
    """Frozen; an unknown key is an error, and so is NaN or infinity: these travel as None beside a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a file.

        Raises:
            OSError: there is none.
            ValueError: it is none, or was changed since its folder was sealed.
        """
        return cls.model_validate_json(read_sealed(path))

    def write(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=2) + "\n")


class ComparisonKey(NamedTuple):
    """On what and how a figure was measured. Figures are comparable where theirs are equal, and in no other case."""

    text: str  # fingerprint of the tokens; the evaluation key, which stands for the text too, of older records
    split: str
    protocol: str  # windows, tokeniser, and the precision that the arithmetic had

    def differs(self, other: "ComparisonKey") -> str:
        """Where two keys differ, in words: the dataset is named where all else is equal. Empty where they are equal."""
        named = {"split": (self.split, other.split), "protocol": (self.protocol, other.protocol)}
        if self[1:] == other[1:]:
            named["text"] = (self.text, other.text)
        found = [
            f"the {name} is {one} in one and {two} in the other" for name, (one, two) in named.items() if one != two
        ]
        return ", and ".join(found)


class TaskScore(Record):
    """One score of a task or group of tasks, as lm-evaluation-harness gives it."""

    task: str
    metric: str  # acc, acc_norm, exact_match, ...
    filter: str = "none"  # what an answer went through before it was scored
    value: float | None  # None where it is not finite
    stderr: float | None  # standard error; None where the harness gives none
    documents: int  # that were scored
    shots: int | None = None  # examples before each question; None of a group
    version: str = ""  # of the task
    higher_is_better: bool = True
    asked: bool = True  # False: a member of a group that was asked for


class Evaluation(Record):
    """One evaluation of a model: a perplexity, or the scores of tasks.

    Beside a perplexity are the losses of its windows, float64 [windows, 2]: nats, scored tokens; beside scores those of
    each document, an array [documents] by TASK/METRIC/FILTER.
    """

    key: str = ""  # evaluation key: of all that a plan says of the measurement; its path in a stage's folder
    stage: str = ""  # key of the stage that was measured; records of earlier versions do not say
    text: str = ""  # fingerprint of the tokens that were measured on; records of earlier versions have none
    protocol: str  # how text became windows, with which tokeniser, and in which precision where it is not float32
    split: str = ""
    perplexity: float | None  # None where the loss is not finite
    loss: float | None  # mean nats a scored token
    bits_per_byte: float | None
    word_perplexity: float | None
    tokens: int  # scored
    windows: int
    finite: bool = True
    seconds: float = 0.0
    scores: tuple[TaskScore, ...] = ()

    @property
    def comparison_key(self) -> ComparisonKey:
        """Whoever compares two figures, or puts them into one mean, asks whether these are equal."""
        return ComparisonKey(self.text or self.key, self.split, self.protocol)


class SparsityRecord(Record):
    """Zeros counted from the weights."""

    pruned: float  # share of zeros in the tensors that were selected for pruning, 0 to 1; 0 where none were
    overall: float  # share of zeros in all parameters
    selected: int  # weights in the selected tensors
    parameters: int  # weights in the model
    target: float | None = None  # what the config asked for
    by_tensor: Mapping[str, float] = Field(default_factory=dict)  # selected tensor -> share of zeros
    layers: tuple[int, ...] = ()  # decoder layers that hold selected tensors
    coverage: float | None = None  # share of the decoder's weights outside the embeddings that are in them, 0 to 1


class StageRecord(Record):
    """What one stage of a trial came to."""

    key: str
    kind: str
    index: int  # position in the chain
    cached: bool  # published by somebody else before this attempt asked
    seconds: float = 0.0  # wall time of computing it
    train_tokens: int = 0  # tokens trained on in this stage
    steps: int = 0  # optimizer steps
    evaluation: Evaluation | None = None  # the first perplexity
    also: Mapping[str, Evaluation] = Field(default_factory=dict)  # further evaluations, by name
    sparsity: SparsityRecord | None = None
    allocation: str = ""  # how a pruning's budget was spread; records of earlier versions do not say
    notes: tuple[str, ...] = ()
    logged: Mapping[str, Any] = Field(default_factory=dict)  # the summary of a W&B run, by its own names
    layers: tuple[Mapping[str, Any], ...] = ()  # rows of a one-shot solver: name, sparsity, error, seconds
    versions: Mapping[str, str] = Field(default_factory=dict)
    device: str = ""
    precision: str = ""  # of the arithmetic; records of earlier versions do not say
    devices: int = 1  # that computed it together
    threads: int = 0  # CPU threads, in each process that computed it; 0: unknown


def chain_metrics(stages: Sequence[StageRecord]) -> dict[str, float | None]:
    """What a chain came to, by the names that searches and trackers use; None where it was not measured or not finite.

    Perplexity, loss (nats), bits_per_byte, sparsity, sparsity_all and coverage (0 to 1) and size (weights that are not
    zero) are those after the last stage, tokens and seconds those of all. Those of a further evaluation have its name
    behind a colon; of tasks there are `task_scores`.
    """
    last = stages[-1] if stages else None
    sparsity = last.sparsity if last else None
    evaluations = {"": last.evaluation, **last.also} if last else {"": None}
    return {
        **{
            f"{metric}:{name}" if name else metric: getattr(found, metric) if found else None
            for name, found in evaluations.items()
            if found is None or not found.scores
            for metric in ("perplexity", "loss", "bits_per_byte")
        },
        **task_scores([score for found in evaluations.values() if found for score in found.scores]),
        "sparsity": sparsity.pruned if sparsity else None,
        "sparsity_all": sparsity.overall if sparsity else None,
        "coverage": sparsity.coverage if sparsity else None,
        "size": round(sparsity.parameters * (1 - sparsity.overall)) if sparsity else None,
        "tokens": sum(stage.train_tokens for stage in stages),
        "seconds": sum(stage.seconds for stage in stages),
    }


def published_record(root: Root, trial: TrialPlan, index: int, *, cached: bool) -> StageRecord:
    """What a published stage of a trial came to, with those of its evaluations that are there.

    Raises:
        ValueError, OSError: stage.json or evaluation.json is not what it should be.
    """
    key = trial.stages[index].key
    record = StageRecord.read(root.stage(key) / "stage.json")
    found = {
        one.name: Evaluation.read(root.evaluation(key, one.key) / "evaluation.json")
        for one in trial.evaluations_after(key)
        if (root.evaluation(key, one.key) / "evaluation.json").exists()
    }
    first = None if trial.evaluate.skip else found.pop(trial.evaluate.called, None)
    return record.model_copy(update={"index": index, "cached": cached, "evaluation": first, "also": found})


def task_scores(scores: Sequence[TaskScore]) -> dict[str, float | None]:
    """Scores of tasks by the names of columns: task:NAME/METRIC, task:NAME and tasks:mean; see `main_scores`."""
    main = main_scores(scores)
    found = {f"task:{one.task}/{one.metric}": one.value for one in reversed(scores)}
    found |= {f"task:{name}": one.value for name, one in main.items()}
    values = [one.value for one in main.values() if one.asked]
    if values:
        known = [value for value in values if value is not None]
        found["tasks:mean"] = sum(known) / len(known) if len(known) == len(values) else None
    return found


def main_scores(scores: Iterable[TaskScore]) -> dict[str, TaskScore]:
    """The one score of each task that a table shows and means are of: accuracy, else the first that the task has."""
    found: dict[str, TaskScore] = {}
    for one in scores:
        if one.task not in found or (one.metric == "acc" and found[one.task].metric != "acc"):
            found[one.task] = one
    return found


class AttemptRecord(Record):
    """record.json: how an attempt ended. Secrets of the environment are redacted."""

    sweep: str
    trial: str
    attempt: int
    state: Literal["finished", "failed", "diverged", "stopped"]
    reason: str = ""  # exception, out-of-memory, signal, diverged, ...
    error: str = ""  # the message for people
    trace: str = ""
    stages: tuple[StageRecord, ...] = ()
    started: float = 0.0  # seconds since the epoch
    ended: float = 0.0
    device: str = ""
    versions: Mapping[str, str] = Field(default_factory=dict)

    @field_validator("error", "trace")
    @classmethod
    def _without_secrets(cls, text: str) -> str:
        return redact(text)


def record_path(folder: Path, rank: int = 0) -> Path:
    """The path of an attempt's record; of several processes that train it together each has its own."""
    return folder / (f"record-{rank}.json" if rank else "record.json")


def finite(value: float | None) -> float | None:
    """The value, or None where there is none or it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


class TrialResult(Record):
    """A trial as the store knows it, what commands and tables read: its plan, and what has come of it."""

    id: int
    plan: TrialPlan
    shown: bool  # False: no longer in the spec
    state: TrialState
    stages: tuple[StageRecord, ...] = ()  # of the attempt that got furthest
    attempts: int = 0
    reason: str = ""  # of the last attempt, where it failed
    error: str = ""
    folder: str = ""  # of the last attempt
    started: float | None = None
    ended: float | None = None

    @property
    def sweep(self) -> str:
        return self.plan.sweep

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def address(self) -> str:
        """SWEEP/TRIAL: what it is called across sweeps."""
        return f"{self.plan.sweep}/{self.plan.name}"

    @property
    def group(self) -> str:
        """The name without the seed."""
        return self.plan.group

    @property
    def seed(self) -> int:
        return self.plan.seed

    @property
    def label(self) -> str:
        """What tables call the model."""
        return self.plan.label

    @property
    def order(self) -> int:
        """Position in the spec."""
        return self.plan.order

    @property
    def implicit(self) -> bool:
        """A teacher that no trial of the spec is."""
        return self.plan.implicit

    @property
    def key(self) -> str:
        return self.plan.key

    @property
    def evaluation_key(self) -> str:
        return self.plan.evaluation_key

    @property
    def swept(self) -> Mapping[str, Any]:
        return self.plan.swept

    @property
    def config(self) -> Mapping[str, Any]:
        """The trial as its spec says it, merged."""
        return self.plan.config

    @property
    def final(self) -> StageRecord | None:
        """The record of the last stage of its plan; None before that is done. A trial's figures are those of it."""
        done = self.state == "finished" or (self.stages and self.stages[-1].index == len(self.plan.stages) - 1)
        return self.stages[-1] if self.stages and done else None

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """What it came to, see `chain_metrics`; before its end, what it has cost so far is all that is known."""
        found = chain_metrics(self.stages)
        if name := self.plan.evaluate.name:  # its figures go by both names
            found |= {f"{metric}:{name}": found[metric] for metric in sorted(MEASURED)}
        return found if self.final else {**dict.fromkeys(found), "tokens": found["tokens"], "seconds": found["seconds"]}

    @property
    def so_far(self) -> str:
        """The perplexity after the last stage that is done, in words; empty where no more stages are planned."""
        found = self.stages[-1].evaluation if self.stages and not self.final else None
        if found is None or found.perplexity is None:
            return ""
        return f"after {self.stages[-1].kind}: perplexity {found.perplexity:.4g}"

    @property
    def evaluation(self) -> Evaluation | None:
        """The measured perplexity of its end; of a W&B run there is none, whatever earlier versions made of it."""
        return self.final.evaluation if self.final and not self.plan.foreign else None

    @property
    def measured(self) -> Evaluation | None:
        """Its evaluation, where it has finished with a perplexity that is a number."""
        found = self.evaluation
        return found if self.state == "finished" and found and found.finite and found.perplexity is not None else None

    def under(self, name: str) -> "TrialResult":
        """The same trial with another of its evaluations in the place of the first; an unknown name means none."""
        if name in ("", self.plan.evaluate.name):
            return self
        stages = tuple(one.model_copy(update={"evaluation": one.also.get(name)}) for one in self.stages)
        return self.model_copy(update={"plan": self.plan.under(name), "stages": stages})

    @property
    def scores(self) -> tuple[TaskScore, ...]:
        """The scores of all its tasks, once it has finished."""
        last = self.final if self.state == "finished" and not self.plan.foreign else None
        return tuple(score for found in last.also.values() for score in found.scores) if last else ()

    @property
    def is_evaluated(self) -> bool:
        """Whether it has finished with what tables show: a finite perplexity, or scores where none is asked for."""
        return bool(self.measured or (self.plan.evaluate.skip and self.scores))

    @property
    def sparsity(self) -> SparsityRecord | None:
        return self.final.sparsity if self.final and not self.plan.foreign else None

    @property
    def logged(self) -> Mapping[str, Any]:
        """The summary of the W&B run that it represents; empty of any other trial."""
        return self.stages[-1].logged if self.stages else {}

    @property
    def planned(self) -> tuple[StagePlan, ...]:
        """The stages that its spec writes: all but the one that the chain starts from."""
        return tuple(stage for stage in self.plan.stages if not stage.starts)

    def described(self) -> dict[str, Any]:
        """All of it as JSON, what it goes by beside its plan: what is given out to programs."""
        found = self.model_dump(mode="json")
        return {"id": self.id, **{name: found["plan"][name] for name in GOES_BY}, "key": self.key, **found}


# What a result once repeated of its plan, and still does where it is given out.
GOES_BY = ("sweep", "name", "group", "seed", "label", "order", "implicit", "evaluation_key", "swept", "config")


def comparable(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """What one figure or ranking may hold: those measured as most are, and those that will be."""
    keys = Counter(trial.measured.comparison_key for trial in trials if trial.measured)
    if len(keys) < 2:
        return list(trials)
    most = max(sorted(keys), key=keys.__getitem__)
    planned = {trial.evaluation_key for trial in trials if trial.measured and trial.measured.comparison_key == most}
    return [
        trial
        for trial in trials
        if (trial.measured.comparison_key == most if trial.measured else trial.evaluation_key in planned)
    ]


def leaves(logged: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a W&B run has logged, nested values by dotted names; an image or the like, with a `_type`, is one value."""
    for name, value in logged.items():
        if isinstance(value, Mapping) and "_type" not in value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
