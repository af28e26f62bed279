"""How the models of a trial are measured: a perplexity on a dataset, scores of tasks, or the speed of generation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prunegpt.errors import counted, listed
from prunegpt.registry import PROTOCOLS
from prunegpt.spec.data import DataSpec, Names, known
from prunegpt.spec.execution import processors
from prunegpt.spec.metrics import SPEED
from prunegpt.spec.part import NAME, Part

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class SpeedSpec(Part):
    """How fast a model generates, measured in turns with a reference: random tokens, greedy, with a KV cache."""

    prompt: int = Field(512, ge=1, description="tokens of the prompt")
    generate: int = Field(64, ge=2, description="tokens that are generated after it")
    batch: int = Field(1, ge=1, description="sequences at a time")
    repeats: int = Field(
        12, ge=6, description="how often model and reference are measured in turns; fewer than 6 have no interval"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads (default: those that the process has)")
    against: str | None = Field(
        None, description="the reference, a trial (default: the model that the chain starts from)"
    )


def length_problem(spec: SpeedSpec, positions: int | None, called: str) -> str | None:
    """Why the tokens do not fit the positions of a model."""
    length = spec.prompt + spec.generate
    if positions is None or length <= positions:
        return None
    return (
        f"prompt and generated tokens must fit the {positions} positions of {called}; they are {length}. Set a shorter "
        "prompt, or generate less."
    )


def threads_problem(spec: SpeedSpec) -> str | None:
    """Why a speed cannot be measured on this machine with as many threads: more than its cores only wait."""
    if spec.threads is None or spec.threads <= (cores := processors()):
        return None
    return (
        f"threads must be at most the {counted(cores, 'CPU core')} of this machine, got {spec.threads}. Set fewer, or "
        "leave it out."
    )


class EvaluateSpec(Part):
    """One evaluation of the models of a chain: a perplexity; with `tasks` scores; with `speed` the time it takes."""

    name: str = Field(
        "",
        pattern=f"^$|{NAME}",
        description="what columns call it, such as c4 in perplexity:c4; one of several may have none",
    )
    after: Literal["each", "last"] | None = Field(
        None, description="measure after each stage, or the last one alone (default: each; of tasks and speed the last)"
    )
    speed: SpeedSpec | None = Field(None, description="tokens per second and memory of generation, {} for the defaults")
    tasks: Names | None = Field(
        None, description="tasks or groups by their names in lm-evaluation-harness; needs prunegpt[tasks]"
    )
    num_fewshot: int | None = Field(None, ge=0, description="examples before each question (default: the task's own)")
    limit: int | None = Field(None, ge=1, description="the first N documents of each task only, to try things out")
    include_path: str | None = Field(None, description="folder of further task files (YAML), as --include_path there")
    split: str = Field("validation", description="the split that is measured on")
    protocol: Annotated[str, known(PROTOCOLS)] = Field("blocks", description="how text becomes windows")
    block_size: int | None = Field(
        None, ge=2, description="tokens per window (default: data.block_size; 128 for protocol llm-pruner)"
    )
    stride: int | None = Field(None, ge=1, description="tokens between windows of `sliding`; half a window by default")
    max_windows: int | None = Field(None, ge=1, description="evaluate only the first N windows")
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="windows at a time; does not change the result"
    )
    data: DataSpec | None = Field(None, description="dataset for the evaluation (default: the trial's data)")
    precision: Precision | None = Field(None, description="precision of the evaluation (default: the trial's)")
    bos: bool = Field(False, description="begin each window with the tokeniser's bos token")
    skip: bool = Field(False, description="measure nothing")

    @model_validator(mode="after")
    def _of_one_kind(self) -> "EvaluateSpec":
        if self.tasks is not None and self.speed is not None:
            raise ValueError("an evaluation is of tasks or of speed, and this has both. Make two of it.")
        for kind, unset in _OF_OTHERS[self.kind].items():
            if wrong := [name for name, default in unset.items() if getattr(self, name) != default]:
                told = f"belongs to {_IN_WORDS[kind]}, and this evaluates {_IN_WORDS[self.kind]}. Remove it."
                raise ValueError(f"{listed(wrong)}: {told}")
        if self.tasks is not None and len(set(self.tasks)) < max(1, len(self.tasks)):
            raise ValueError("tasks: at least one is needed, and each once.")
        if self.speed is not None and self.name == "prefill":
            raise ValueError("name: must not be prefill, for speedup:prefill is a column already. Choose another.")
        return self

    @property
    def kind(self) -> Literal["text", "tasks", "speed"]:
        """What is measured: the perplexity of a text, tasks, or speed."""
        return "tasks" if self.tasks is not None else "speed" if self.speed is not None else "text"

    @property
    def called(self) -> str:
        """Its name; that of tasks is `tasks`, and that of speed `speed`, where they have no other."""
        return self.name or {"text": "", "tasks": "tasks", "speed": SPEED}[self.kind]

    @property
    def after_each(self) -> bool:
        """Whether every stage of a chain is measured, and not the last one alone."""
        return self.after == "each" or (self.after is None and self.kind == "text")


_FIELDS = {
    "text": frozenset({"split", "protocol", "block_size", "stride", "max_windows", "data", "bos", "batch_size"}),
    "tasks": frozenset({"tasks", "num_fewshot", "limit", "include_path", "batch_size"}),
    "speed": frozenset({"speed"}),
}  # of one kind of evaluation alone, or of two
_OF_OTHERS = {
    own: {
        kind: {name: EvaluateSpec.model_fields[name].default for name in sorted(fields - _FIELDS[own])}
        for kind, fields in _FIELDS.items()
    }
    for own in _FIELDS
}  # own kind -> another -> its fields, with what they are where nobody sets them
_IN_WORDS = {"text": "a perplexity", "tasks": "tasks", "speed": "speed"}


def apart(evaluations: tuple[EvaluateSpec, ...]) -> tuple[EvaluateSpec, ...]:
    """Several evaluations, whose names differ; tasks too, since columns are called by them."""
    names = [one.called for one in evaluations]
    tasks = [task for one in evaluations for task in one.tasks or ()]
    for what, found in (("evaluations", names), ("tasks of evaluations", tasks)):
        if repeated := sorted({name for name in found if found.count(name) > 1}):
            told = ", ".join(name or "one without a name" for name in repeated)
            raise ValueError(f"the names of {what} must differ; {told} is there more than once. Rename or remove one.")
    return evaluations
