"""What a sweep spec may say. Every field carries its unit and meaning; the reference page is generated from here."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from prunegpt.errors import unknown
from prunegpt.registry import (
    ALLOCATIONS,
    CRITERIA,
    DISTILLATION_LOSSES,
    MASK_MODES,
    NAMED_ALLOCATIONS,
    REFINEMENTS,
    SCHEDULES,
    SOLVERS,
)
from prunegpt.spec.adapter import AdapterSpec
from prunegpt.spec.code import CodePart
from prunegpt.spec.columns import check_column
from prunegpt.spec.data import CalibrationSpec as CalibrationSpec
from prunegpt.spec.data import DataSpec as DataSpec
from prunegpt.spec.data import ModelSpec as ModelSpec
from prunegpt.spec.data import Names, Seed, Temperature, known, many, some
from prunegpt.spec.evaluate import EvaluateSpec as EvaluateSpec
from prunegpt.spec.evaluate import Precision, apart
from prunegpt.spec.execution import FailureSpec, LauncherSpec
from prunegpt.spec.figures import DeclaredFigures
from prunegpt.spec.part import NAME, TEMPLATE, Part, Scalar, short
from prunegpt.spec.patterns import canonical_pattern, fixed_sparsity
from prunegpt.spec.repair import RepairSpec
from prunegpt.spec.schedules import Clock, clock_of
from prunegpt.spec.search import EarlyStopSpec, SearchSpec, TargetSpec
from prunegpt.spec.shrink import ShrinkSpec
from prunegpt.spec.tracking import TrackingSpec
from prunegpt.spec.training_arguments import check_argument


def _fraction(value: float) -> float:
    if not 0 <= value < 1:
        hint = f" Did you mean {value / 100:g}?" if 1 < value < 100 else ""
        raise ValueError(f"sparsity must be at least 0 and below 1, got {value:g}.{hint}")
    return value


Sparsity = Annotated[float, AfterValidator(_fraction)]
Indices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(many)]


def _method(name: str) -> str:
    if CodePart.of(name) is None and name not in CRITERIA and name not in SOLVERS:
        raise ValueError(unknown("criterion or solver", name, [*CRITERIA.names(), *SOLVERS.names()]))
    return name


Method = Annotated[str, AfterValidator(_method)]
Keep = Literal["none", "best", "all"]


class PruneSpec(Part):
    """One-shot pruning: which weights go, at once. `criterion` is accepted as another name of `method`."""

    method: Method = Field("magnitude", description="criterion or solver; FILE.py:FUNCTION is a criterion of your own")
    sparsity: Sparsity | None = Field(None, description="share of the selected weights that becomes zero, 0 to 1")
    pattern: Annotated[str, BeforeValidator(canonical_pattern)] = Field(
        "unstructured", description="unstructured, N:M (N of M kept along the input), or [a, b] blocks"
    )
    allocation: str | Mapping[str, Sparsity] | None = Field(
        None,
        description=f"how it is spread: {', '.join(NAMED_ALLOCATIONS)}, or {{pattern: sparsity}}",
    )
    targets: Names = Field(
        (), description="names, globs or re: patterns of tensors; default: all weight matrices of the decoder layers"
    )
    layers: Indices = Field((), description="indices of decoder layers (default: all)")
    exclude: Names = Field((), description="patterns of tensors to leave alone")
    calibration: CalibrationSpec = Field(CalibrationSpec(), description="calibration data for activation-aware methods")
    propagate: bool = Field(True, description="calibrate each layer on the outputs of the pruned layers before it")
    refine: Annotated[str, known(REFINEMENTS)] | None = Field(
        None, description="exchange weights of the mask: swaps (SparseSwaps), by the row's error, or dsnot, by its mean"
    )
    repair: RepairSpec | None = Field(
        None, description="train kept weights to give the dense layers' outputs: block, attention, mlp, sublayers"
    )
    stream: bool | Literal["auto"] = Field(
        "auto", description="one decoder layer at a time is on the device; auto: where the model does not fit it"
    )
    options: Mapping[str, Scalar] = Field(
        {}, description="further arguments of the method, the allocation, the refinement or the mode"
    )
    curves: Mapping[str, tuple[tuple[float, float], ...]] = Field(
        {}, description="block -> (sparsity, loss increase in nats) for allocation sensitivity; read from options.sweep"
    )

    @property
    def names_tensors(self) -> bool:
        """Whether it says itself which tensors it means, in place of all that are pruned by default."""
        return bool(self.targets or self.layers or self.exclude)

    @model_validator(mode="before")
    @classmethod
    def _criterion_is_method(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "criterion" in value:
            if "method" in value:
                raise ValueError("method and criterion are two names of one field. Remove one.")
            value = {("method" if key == "criterion" else key): item for key, item in value.items()}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "PruneSpec":
        fixed = fixed_sparsity(self.pattern)
        if fixed is not None and self.sparsity is not None and abs(fixed - self.sparsity) > 1e-6:
            raise ValueError(
                f"pattern {self.pattern} fixes the sparsity at {fixed:g}; sparsity is {self.sparsity:g}. Remove one."
            )
        if isinstance(self.allocation, str):
            ALLOCATIONS.check(self.allocation)
        if self.sparsity is None and fixed is None and not isinstance(self.allocation, Mapping):
            raise ValueError("pruning needs a sparsity (such as 0.5) or a pattern that fixes it (such as 2:4).")
        return self


class GradualSpec(PruneSpec):
    """Pruning while training: sparsity grows from `initial` to `sparsity` between `start` and `end`."""

    schedule: Annotated[str, known(SCHEDULES)] = Field("cubic", description="how sparsity grows")
    initial: Sparsity = Field(0.0, description="sparsity at start")
    start: float = Field(0.0, ge=0, description="when pruning starts, in `unit`")
    end: float | None = Field(
        None, ge=0, description="when the final sparsity is reached, in `unit`; half-way by default"
    )
    every: float = Field(0.1, gt=0, description="time between mask updates, in `unit`")
    clock: Literal["regular", "sparseml"] = Field(
        "regular", description="regular: start, start + every, …, end; sparseml: its drifting grid, `unit` epochs only"
    )
    unit: Literal["epochs", "steps", "fraction"] = Field(
        "epochs", description="epochs, optimizer steps, or fraction of the stage's steps"
    )
    regrow: bool = Field(False, description="let pruned weights come back when masks are updated")
    mode: Annotated[str, known(MASK_MODES)] = Field(
        "projected",
        description="projected: pruned weights are zero; live: they learn on behind the mask (SR-STE, AST); rigl: some "
        "are dropped and as many grown by gradient; elsa: weights are pulled towards sparse ones (ADMM), pruned at end",
    )

    def clock_in(self, steps: int, per_epoch: int) -> Clock:
        """When masks are updated in a training of that many optimizer steps; see `spec.schedules.clock_of`."""
        return clock_of(
            start=self.start,
            end=self.end,
            every=self.every,
            unit=self.unit,
            grid=self.clock,
            steps=steps,
            per_epoch=per_epoch,
        )

    @model_validator(mode="after")
    def _ordered(self) -> "GradualSpec":
        if self.repair is not None:
            raise ValueError("repair belongs to a prune stage; training repairs what it prunes by itself. Remove it.")
        if self.refine is not None:
            raise ValueError("refine belongs to a prune stage; in training masks are chosen by scores. Remove it.")
        if self.stream != "auto":
            raise ValueError(
                f"stream belongs to a prune stage; training needs the whole model, got {self.stream}. Remove it."
            )
        if self.end is not None and self.end < self.start:
            raise ValueError(f"end must not come before start; start is {self.start:g} and end {self.end:g}.")
        return self


def _arguments(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Each training argument checked; problems are reported at their own lines."""
    checked, wrong = {}, []
    for name, value in given.items():
        try:
            checked[name] = check_argument(name, value)
        except ValueError as error:
            wrong.append(InitErrorDetails(type="value_error", loc=(name,), input=value, ctx={"error": error}))
    if wrong:
        raise ValidationError.from_exception_data("train", wrong)
    return checked


Arguments = Annotated[Mapping[str, Any], AfterValidator(_arguments)]


class FinetuneSpec(Part):
    """Training on the text; masks of earlier stages stay closed."""

    train: Arguments = Field({}, description="names of transformers.TrainingArguments, over those of the trial")
    data: DataSpec | None = Field(None, description="dataset for training (default: the trial's data)")
    prune: GradualSpec | None = Field(None, description="prune while training")
    adapter: AdapterSpec | None = Field(
        None, description="train low-rank updates of the weights that masks keep, in place of the weights"
    )
    loss_on: Literal["all", "responses"] = Field(
        "all", description="responses: of chat messages, only what the assistant says is trained on"
    )
    keep_masks: bool = Field(True, description="weights pruned by earlier stages stay zero")
    keep_zeros: bool = Field(False, description="every zero in the matrices of the decoder layers stays zero")
    keep_checkpoints: bool = Field(False, description="publish the stage's checkpoints beside its model")
    learning_rate: tuple[Mapping[str, Any], ...] = Field(
        (), description="segments of a curve, as a recipe gives them, instead of lr_scheduler_type"
    )
    recipe_args: Mapping[str, Scalar] = Field({}, description="values of the recipe's variables")
    recipe: str | None = Field(
        None, description="recipe file with prune, distill and train sections; fields given here take precedence"
    )


class TeacherModel(Part):
    """A teacher that is a model, not a trial."""

    model: ModelSpec = Field(description="where it comes from")


class CacheSpec(Part):
    """Teacher logits are computed once and kept."""

    k: int = Field(64, ge=1, description="most probable tokens kept at each position")


class OnPolicySpec(Part):
    """The student writes the text of some steps: continuations of their prompts, judged by the teacher (GKD).

    A plain number means `{share: NUMBER}`.
    """

    BARE = "share"

    share: float = Field(0.5, gt=0, le=1, description="of optimizer steps, evenly spread (λ of GKD)")
    new_tokens: int = Field(64, ge=1, description="tokens that it writes of a sequence, at most")
    temperature: Temperature = Field(1.0, description="that it samples them with")


class DistillSpec(FinetuneSpec):
    """Training against a teacher: (1 - hardness) · CE + hardness · KD (+ gains · hidden terms)."""

    teacher: str | TeacherModel = Field(description="a trial, SWEEP/TRIAL, or {model: SOURCE}")
    loss: Annotated[str, known(DISTILLATION_LOSSES)] = Field("forward_kl", description="divergence of the outputs")
    hardness: float = Field(0.5, ge=0, le=1, description="weight of the distillation term, 0 to 1")
    temperature: Temperature = Field(2.0, description="both distributions are softened by it")
    options: Mapping[str, Scalar] = Field({}, description="further arguments of the loss, such as k of top_k")
    hidden_gain: float = Field(0.0, ge=0, le=1e6, description="weight of the hidden-state term (SquareHead)")
    attention_gain: float = Field(0.0, ge=0, le=1e6, description="weight of the attention-map term")
    layer_map: Mapping[int, int] | None = Field(None, description="student layer -> teacher layer of the hidden term")
    cache: CacheSpec | None = Field(None, description="keep the teacher's top-k logits on disk")
    on_policy: OnPolicySpec | None = Field(
        None, description="the student writes the text of some steps; a number is their share"
    )


STAGES = {"finetune": FinetuneSpec, "prune": PruneSpec, "shrink": ShrinkSpec, "distill": DistillSpec}
StageConfig = FinetuneSpec | PruneSpec | ShrinkSpec | DistillSpec


class StageSpec(Part):
    """One stage: exactly one of finetune, prune, shrink, distill."""

    finetune: FinetuneSpec | None = Field(None, description="fine-tuning on the dataset")
    prune: PruneSpec | None = Field(None, description="one-shot pruning")
    shrink: ShrinkSpec | None = Field(None, description="a smaller shape")
    distill: DistillSpec | None = Field(None, description="distillation from a teacher")

    @model_validator(mode="before")
    @classmethod
    def _empty_body(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, Mapping):
            return {key: ({} if item is None else item) for key, item in value.items()}
        return value

    @model_validator(mode="after")
    def _one(self) -> "StageSpec":
        if len(self.model_fields_set) != 1:
            raise ValueError(
                f"a stage must be exactly one of {', '.join(STAGES)}; it has {len(self.model_fields_set)}."
            )
        return self

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def config(self) -> StageConfig:
        config: StageConfig = getattr(self, self.kind)
        return config

    def filled(self, config: StageConfig) -> "StageSpec":
        """The same stage with another config of its kind."""
        return self.model_copy(update={self.kind: config})


class Settings(Part):
    """What a trial may say, and what `base` may say for all of them."""

    model: ModelSpec | None = Field(None, description="where the trial starts")
    data: DataSpec | None = Field(None, description="the text")
    evaluate: EvaluateSpec | Annotated[tuple[EvaluateSpec, ...], AfterValidator(some), AfterValidator(apart)] = Field(
        EvaluateSpec(),
        description="how models are measured; a list for several evaluations, each with a name",
    )
    train: Arguments = Field({}, description="names of transformers.TrainingArguments for every training stage")
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(many), AfterValidator(some)] = Field(
        (42,), description="one trial each; `seeds: 3` is one trial with the seed 3, and `seeds: [1, 2, 3]` are three"
    )
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = Field("auto", description="where to compute")
    precision: Precision = Field(
        "auto", description="auto: bfloat16 where the device has it, else float32; decided when the trial is planned"
    )
    stages: tuple[StageSpec, ...] = Field((), description="the chain; empty: the model is evaluated as it is")

    @property
    def evaluations(self) -> tuple[EvaluateSpec, ...]:
        """What is measured, the first perplexity first: columns, searches and trainings mean it if they name none."""
        found = self.evaluate if isinstance(self.evaluate, tuple) else (self.evaluate,)
        perplexities = sorted((one for one in found if one.kind == "text"), key=lambda one: one.skip)
        first = perplexities[0] if perplexities else EvaluateSpec(skip=True)
        return (first, *(one for one in found if one is not first and not one.skip))


class TrialSpec(Settings):
    """One named trial, or a grid of them."""

    name: str = Field(pattern=TEMPLATE, description="letters, digits and ._=+,@- ; {key} of a varied key")
    vary: Mapping[str, Annotated[tuple[Any, ...], AfterValidator(some)]] = Field(
        {}, description="path -> values; the product is run"
    )
    search: SearchSpec | None = Field(None, description="trials that are suggested one by one, instead of vary")


class ColumnSpec(Part):
    """A column of a table. A plain string means `{value: STRING}`."""

    BARE = "value"

    value: Annotated[str, AfterValidator(check_column)] = Field(description="a name from the list below")
    header: str | None = Field(None, description="heading (default: the column's own)")


class Reported(Part):
    """A published figure beside the measured one."""

    value: float | None = Field(None, description="the figure; none where it was left empty")
    text: str | None = Field(None, description="as it was printed, where it is not a plain number")
    note: str | None = Field(None, description="footnote, such as why the figure is no perplexity")
    source: str | None = Field(None, description="where it was published (default: the table's)")
    tolerance: float | None = Field(
        None, ge=0, lt=1, description="what `reproduce` lets a measured figure differ by, as a share of it"
    )


class RowSpec(Part):
    """Rows of a table: the trials a pattern matches, in spec order. A plain string means `{trial: STRING}`."""

    BARE = "trial"

    trial: str = Field(description="name or glob")
    label: str | None = Field(None, description="text of the model column")
    best: int | None = Field(None, ge=1, description="show only the N trials of lowest perplexity, best first")


def _figure(value: Any) -> Any:
    """A bare value is the figure, and one that is no finite number (`.inf`, "n/a") is what was printed."""
    if isinstance(value, Mapping):
        return value
    printed = isinstance(value, str) or (isinstance(value, float) and not math.isfinite(value))
    return {"text": str(value)} if printed else {"value": value}


def _figures(value: Any) -> Any:
    """The figures of one row, by column; one alone is its perplexity."""
    if isinstance(value, Mapping) and not set(value) <= set(Reported.model_fields):
        return {name: _figure(one) for name, one in value.items()}
    return {"perplexity": _figure(value)}


class TableSpec(Part):
    """A table that comes out of the sweep."""

    title: str = Field(description="heading")
    name: Annotated[str, AfterValidator(short)] | None = Field(
        None, pattern=NAME, description="name in file names and README markers (default: derived from the title)"
    )
    rows: Annotated[tuple[RowSpec, ...], AfterValidator(some)] = Field(
        description="trials by name or glob, in this order"
    )
    columns: Annotated[tuple[ColumnSpec, ...], AfterValidator(some)] = Field(
        description="names of columns, from the list below"
    )
    reported: Mapping[str, Annotated[Mapping[str, Reported], BeforeValidator(_figures)]] = Field(
        {}, description="trial name -> published perplexity, or column -> published figure"
    )
    source: str | None = Field(None, description="where the published figures are from")
    tolerance: float = Field(
        0.02, ge=0, lt=1, description="what `reproduce` lets measured figures differ by, as a share of the published"
    )
    decimals: int | None = Field(None, ge=0, le=9, description="decimals of perplexities (default: 2) and bits (3)")
    caption: str | None = Field(None, description="caption in LaTeX (default: the title)")
    provenance: bool = Field(True, description="the line below the table: versions, protocol, date")


class Spec(Part):
    """One sweep."""

    name: Annotated[str, AfterValidator(short)] = Field(
        pattern=NAME, description="letters, digits and ._=+,@-; the sweep's folder"
    )
    title: str | None = Field(None, description="heading (default: the name)")
    base: Settings = Field(Settings(), description="settings of all trials")
    trials: Annotated[tuple[TrialSpec, ...], AfterValidator(some)] = Field(description="what is tried")
    tables: tuple[TableSpec, ...] = Field((), description="tables of the results")
    figures: DeclaredFigures = Field((), description="figures of the results")
    early_stop: EarlyStopSpec | None = Field(None, description="early stopping of trials")
    target: TargetSpec | None = Field(None, description="what is good enough: nothing more is started after it")
    keep: Keep = Field(
        "all",
        description="models of finished trials that stay on the disk: none, best (of the seeds of a configuration, and "
        "of a search), or all; results stay, and what an unfinished trial needs",
    )
    failures: FailureSpec = Field(FailureSpec(), description="retries, time limit, heartbeat")
    launcher: LauncherSpec = Field(LauncherSpec(), description="where trials run")
    tracking: TrackingSpec = Field(TrackingSpec(), description="experiment tracking")
