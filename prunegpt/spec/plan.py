"""What a spec means: trials, each a chain of stages with keys. Frozen data; no torch; written as trial.json."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AliasChoices, Field

from prunegpt.spec.code import CodePart
from prunegpt.spec.execution import FailureSpec, LauncherSpec
from prunegpt.spec.part import Part
from prunegpt.spec.schema import (
    CalibrationSpec,
    DataSpec,
    DistillSpec,
    EvaluateSpec,
    FinetuneSpec,
    Keep,
    ModelSpec,
    PruneSpec,
    TableSpec,
)
from prunegpt.spec.search import EarlyStopSpec, SearchSpec, TargetSpec
from prunegpt.spec.shrink import ShrinkSpec
from prunegpt.spec.tracking import TrackingSpec

FOREIGN = "wandb:"  # what the model of such a trial begins with
StageKind = Literal["load", "pretrain", "init", "finetune", "prune", "shrink", "distill", "logged"]


class StagePlan(Part):
    """One stage with all that decides its result.

    `load` takes a model as it is; `pretrain` trains a built-in one from random weights; `init` draws weights in the
    shape of a model; `logged` is what a W&B client
    has logged of a run that happened elsewhere. Exactly one of the configs of the other kinds is set, with the trial's
    settings merged in.
    """

    key: str
    kind: StageKind
    parent: str | None = None  # key of the stage whose model this one takes
    teacher: str | None = None  # key of the stage whose model teaches
    model: ModelSpec  # where the chain started: its tokeniser, and for its first stage the model
    finetune: FinetuneSpec | None = None
    prune: PruneSpec | None = None
    shrink: ShrinkSpec | None = None
    measured_on: str = ""  # the machine whose times decide a shrink
    distill: DistillSpec | None = None
    data: DataSpec | None = None  # what is trained on
    storage: Literal["float32", "bfloat16", "float16"] = "float32"  # dtype of the model that it publishes
    seed: int = 0
    neutral: Mapping[str, Any] = {}  # training arguments that do not decide the result, so are not in the key

    @property
    def training(self) -> FinetuneSpec | None:
        """The training config of `finetune` and `distill`."""
        return self.finetune or self.distill

    @property
    def pruning(self) -> PruneSpec | None:
        """The pruning config, one-shot or gradual."""
        return self.prune or (self.training.prune if self.training else None)

    @property
    def calibration(self) -> CalibrationSpec | None:
        """The calibration data of its pruning or shrink."""
        calibrated = self.shrink or self.pruning
        return calibrated.calibration if calibrated else None

    @property
    def declared_blocks(self) -> int | None:
        """The number of training sequences, if the spec gives the number of tokens."""
        return self.data.tokens // self.data.block_size if self.data and self.data.tokens else None

    @property
    def starts(self) -> bool:
        """Whether chains start with it; a spec does not write it."""
        return self.kind in ("load", "pretrain", "init")

    def allocation(self, *, by_row: bool) -> str:
        """How the budget of its pruning is spread; empty where it prunes nothing.

        Args:
            by_row: whether its method prunes every row alike by default.
        """
        if self.pruning is None:
            return ""
        said = self.pruning.allocation
        return ("row" if by_row else "uniform") if said is None else said if isinstance(said, str) else "explicit"


class PlannedEvaluation(Part):
    """One evaluation of a trial, with all that decides its result but the model."""

    evaluate: EvaluateSpec  # of a perplexity with block_size and data filled in
    key: str  # hash of it and of what it reads
    files: tuple[str, ...] = ()  # local ones that its tasks read
    reference: str = ""  # of speed: key of the stage whose model is measured beside it
    called: str = ""  # what that is called

    @property
    def name(self) -> str:
        return self.evaluate.called


class LoggedRun(Part):
    """A run that a W&B client has logged, as it describes itself. It cannot be run here."""

    entity: str
    project: str
    id: str
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    sweep: str = ""  # W&B's id of the sweep whose agent started it
    host: str = ""
    program: str = ""


class TrialPlan(Part):
    """One configuration of a sweep, ready to run."""

    sweep: str
    name: str
    group: str  # the name without the seed: trials that differ in the seed alone share it
    seed: int
    label: str  # what tables call the model
    order: int = 0  # position in the spec
    implicit: bool = False  # a teacher that no trial of the spec is; run, but not shown in tables
    search: str = ""  # name of the search that suggested it; empty where the spec itself says it
    number: int = 0  # of the suggestion, counted within its search from 1
    constraints: tuple[str, ...] = ()  # of that search: what a good trial fulfils
    study: int = 0  # of that search, from 0; a new one where its earlier suggestions could not be repeated
    told: tuple[
        int, ...
    ] = ()  # results reported to the search since its last suggestion: trial numbers; 0: no suggestion
    model: ModelSpec
    data: DataSpec
    evaluate: EvaluateSpec  # block_size and data filled in
    evaluation_key: str  # hash of all that decides a measured perplexity but the model
    also: tuple[PlannedEvaluation, ...] = ()  # further evaluations
    device: str = "auto"
    precision: str = "auto"
    micro_batch_divisor: int = Field(1, validation_alias=AliasChoices("micro_batch_divisor", "divide"))
    # ^ of every training stage, with as many times the accumulation: equal results; `divide` in older roots
    stages: tuple[StagePlan, ...]  # the first `starts` the chain
    needs: tuple[str, ...] = ()  # teachers: stage keys that other trials publish
    swept: Mapping[str, Any] = {}  # path -> value of what `vary` varied, or a search has chosen
    config: Mapping[str, Any] = {}  # the merged spec of the trial, for people to read
    teachers: Mapping[str, str] = {}  # stage key of a teacher -> what tables call it
    teacher_models: Mapping[str, ModelSpec] = {}  # the same key -> the model that its chain started from
    run: LoggedRun | None = None  # the W&B run that it represents, where it is no trial of a spec
    inputs: Mapping[str, str] = {}  # every local file that is read, by absolute path -> SHA-256 of its content

    @property
    def key(self) -> str:
        """The key of the last stage: equal keys are equal configurations."""
        return self.stages[-1].key

    @property
    def evaluations(self) -> tuple[PlannedEvaluation, ...]:
        """All that is measured, the first perplexity first."""
        if self.evaluate.skip:
            return self.also
        first = PlannedEvaluation.model_construct(evaluate=self.evaluate, key=self.evaluation_key)  # both were checked
        return (first, *self.also)

    def evaluations_after(self, stage: str) -> tuple[PlannedEvaluation, ...]:
        """What is measured of the model of a stage, by its key."""
        return tuple(one for one in self.evaluations if one.evaluate.after_each or stage == self.key)

    def under(self, name: str) -> "TrialPlan":
        """The same trial with another of its evaluations in the place of the first, where it has one of that name."""
        found = next((one for one in self.also if one.name == name), None)
        return self.model_copy(update={"evaluate": found.evaluate, "evaluation_key": found.key}) if found else self

    @property
    def measured_by(self) -> str:
        """The keys of all its evaluations with their names: what a result must have been measured by to count."""
        return " ".join([self.evaluation_key, *(f"{one.name}={one.key}" for one in self.also)])

    @property
    def trusts(self) -> tuple[str, ...]:
        """The models whose own code it runs, and criteria in files, in order."""
        models = (self.model, *(stage.model for stage in self.stages), *self.teacher_models.values())
        methods = (CodePart.of(stage.pruning.method) for stage in self.stages if stage.pruning)
        named = (
            *(model.source for model in models if model.trust_remote_code),
            *(code.path for code in methods if code),
        )
        return tuple(dict.fromkeys(named))

    @property
    def foreign(self) -> bool:
        """Whether it represents a W&B run, which is followed or was imported, and cannot be run."""
        return self.model.source.startswith(FOREIGN)

    @property
    def comparison_key(self) -> tuple[str, str]:
        """What is known of how it is measured before it is: where these are equal, its figures can be compared.

        The evaluation key, and the model that the tokeniser comes from.
        """
        return self.evaluation_key, self.model.tokenizer or f"{self.model.source}@{self.model.revision}"


class SearchPlan(Part):
    """One search of a sweep: its trials are suggested while the sweep runs."""

    name: str  # of the trial in the spec, a template of the names of what is suggested
    index: int  # of the trial in the spec
    order: int  # the position of its trials in the plan
    spec: SearchSpec
    needs: tuple[str, ...] = ()  # teachers that its trials may have: stage keys that trials of the plan publish


class SweepPlan(Part):
    """All trials of a sweep, those its teachers need included."""

    name: str
    title: str
    source: str | None = None  # the spec's file
    folder: str = ""  # working directory it was planned in, where relative paths begin; empty: not known
    trials: tuple[TrialPlan, ...]
    searches: tuple[SearchPlan, ...] = ()
    early_stop: EarlyStopSpec | None = None
    target: TargetSpec | None = None
    keep: Keep = "all"  # models of finished trials that stay
    failures: FailureSpec = FailureSpec()
    launcher: LauncherSpec = LauncherSpec()
    tracking: TrackingSpec = TrackingSpec()
    tables: tuple[TableSpec, ...] = ()
    spec: Mapping[str, Any] = {}  # as read, after --set
    unchecked: tuple[str, ...] = ()  # what could not be checked without a network, in words

    @property
    def expected(self) -> int | None:
        """Trials at the end of its searches; None where one of them ends by time or tokens."""
        counts = [search.spec.n_trials for search in self.searches]
        return None if None in counts else len(self.trials) + sum(count or 0 for count in counts)
