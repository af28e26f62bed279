"""What crosses from a worker to the coordinator: frozen, written whole, no torch."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from prunegpt.records.evaluation import (
    ComparisonKey as ComparisonKey,
)
from prunegpt.records.evaluation import (
    Evaluation as Evaluation,
)
from prunegpt.records.evaluation import (
    Record as Record,
)
from prunegpt.records.evaluation import (
    Speed as Speed,
)
from prunegpt.records.evaluation import (
    TaskScore as TaskScore,
)
from prunegpt.records.evaluation import (
    Timed as Timed,
)
from prunegpt.records.evaluation import (
    finite as finite,
)
from prunegpt.records.evaluation import (
    main_scores as main_scores,
)
from prunegpt.records.evaluation import (
    task_scores as task_scores,
)
from prunegpt.redact import redact
from prunegpt.root import Root
from prunegpt.spec.metrics import MEASURED, speed_metric
from prunegpt.spec.plan import StagePlan, TrialPlan

TrialState = Literal["waiting", "running", "finished", "failed", "diverged", "stopped"]
TOTAL_STEPS = "total_steps"  # the point with the number of steps of a stage: optimizer steps, or layers to prune
CALIBRATED = "calibrated"  # the curve of a calibration pass, 0 to 1, over what it passes through
LAYERS_PRUNED = "layers_pruned"  # the curve of one-shot pruning: weight matrices that are done
DISK_FULL = "disk-full"  # the reason of a trial that failed because there was no room for what it writes
EARLY_STOP = "early-stop"  # the reason of a trial that was stopped because others did better


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

    @property
    def nonzero(self) -> int:
        """Weights of the model that are not zero."""
        return round(self.parameters * (1 - self.overall))


class StageRecord(Record):
    """What one stage of a trial came to."""

    key: str
    kind: str
    index: int  # position in the chain
    cached: bool  # published by somebody else before this attempt asked
    seconds: float = 0.0  # wall time of computing it
    peak_memory: int | None = None  # bytes, see `usage.peak`; None: unknown
    train_tokens: int = 0  # tokens trained on in this stage
    steps: int = 0  # optimizer steps
    evaluation: Evaluation | None = None  # the first perplexity
    also: Mapping[str, Evaluation] = Field(default_factory=dict)  # further evaluations, by name
    sparsity: SparsityRecord | None = None
    bytes: int | None = None  # of the files that hold its weights; records of earlier versions do not say
    stored: str = ""  # the dtype of the weights in them
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

    Perplexity, loss (nats), bits_per_byte, sparsity, sparsity_all and coverage (0 to 1), parameters, nonzero and bytes
    are those after the last stage, tokens and seconds those of all. Those of a further evaluation have its name
    behind a colon; of tasks there are `task_scores`, of a speed `Speed.metrics`.
    """
    last = stages[-1] if stages else None
    sparsity = last.sparsity if last else None
    evaluations = {"": last.evaluation, **last.also} if last else {"": None}
    return {
        **{
            f"{metric}:{name}" if name else metric: getattr(found, metric) if found else None
            for name, found in evaluations.items()
            if not name or found is None or not (found.scores or found.speed)
            for metric in ("perplexity", "loss", "bits_per_byte")
        },
        **task_scores([score for found in evaluations.values() if found for score in found.scores]),
        **{
            speed_metric(metric, name): value
            for name, found in evaluations.items()
            if name and found and found.speed
            for metric, value in found.speed.metrics.items()
        },
        "sparsity": sparsity.pruned if sparsity else None,
        "sparsity_all": sparsity.overall if sparsity else None,
        "coverage": sparsity.coverage if sparsity else None,
        "parameters": sparsity.parameters if sparsity else None,
        **dict.fromkeys(("nonzero", "size"), sparsity.nonzero if sparsity else None),
        "bytes": last.bytes if last else None,
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
    curves: Mapping[str, float | None] = {}  # what its curves came to, by path; those that a table or figure asks for

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
        """Its evaluation, where it has finished with a number: a perplexity, or seen `under` it a speed."""
        found = self.evaluation
        return found if self.state == "finished" and found and found.is_number else None

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
        """Whether it has finished with what tables show: a number, or others where no perplexity is asked for."""
        also = self.final.also.values() if self.state == "finished" and self.final else ()
        return bool(self.measured or (self.plan.evaluate.skip and any(one.scores or one.speed for one in also)))

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
        found = self.model_dump(mode="json", exclude={"curves"})
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


def leaves(node: Mapping[str, Any], prefix: str = "", whole: Container[str] = ()) -> Iterator[tuple[str, Any]]:
    """What W&B has of a run, nested values by dotted names; an image or the like, with a `_type`, is one value.

    Args:
        whole: names whose value is one, whatever it is.
    """
    for name, value in node.items():
        path = prefix + name
        if isinstance(value, Mapping) and "_type" not in value and path not in whole:
            yield from leaves(value, f"{path}.", whole)
        else:
            yield path, value
