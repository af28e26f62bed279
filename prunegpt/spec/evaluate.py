"""How the models of a trial are measured: a perplexity on a dataset, or scores of tasks."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prunegpt.registry import PROTOCOLS
from prunegpt.spec.data import DataSpec, Names, known
from prunegpt.spec.part import NAME, Part

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class EvaluateSpec(Part):
    """One evaluation of the models of a chain: a perplexity, or with `tasks` the scores of lm-evaluation-harness."""

    name: str = Field(
        "",
        pattern=f"^$|{NAME}",
        description="what columns call it, such as c4 in perplexity:c4; one of several may have none",
    )
    after: Literal["each", "last"] | None = Field(
        None, description="measure after each stage, or the last one alone (default: each; of tasks the last)"
    )
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
    def _either(self) -> "EvaluateSpec":
        foreign = _OF_TEXT if self.tasks is not None else _OF_TASKS
        set_ = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if wrong := sorted(set_ & foreign):
            kind, other = ("tasks", "a perplexity") if self.tasks is not None else ("a perplexity", "tasks")
            raise ValueError(f"{', '.join(wrong)}: belongs to {other}, and this evaluates {kind}. Remove it.")
        if self.tasks is not None and len(set(self.tasks)) < max(1, len(self.tasks)):
            raise ValueError("tasks: at least one is needed, and each once.")
        return self

    @property
    def called(self) -> str:
        """Its name; that of tasks is `tasks` where they have no other."""
        return self.name or ("tasks" if self.tasks else "")

    @property
    def after_each(self) -> bool:
        """Whether every stage of a chain is measured, and not the last one alone."""
        return self.after == "each" or (self.after is None and self.tasks is None)


_OF_TEXT = frozenset({"split", "protocol", "block_size", "stride", "max_windows", "data", "bos"})
_OF_TASKS = frozenset({"num_fewshot", "limit", "include_path"})


def apart(evaluations: tuple[EvaluateSpec, ...]) -> tuple[EvaluateSpec, ...]:
    """Several evaluations, whose names differ; tasks too, since columns are called by them."""
    names = [one.called for one in evaluations]
    tasks = [task for one in evaluations for task in one.tasks or ()]
    for what, found in (("evaluations", names), ("tasks of evaluations", tasks)):
        if repeated := sorted({name for name in found if found.count(name) > 1}):
            told = ", ".join(name or "one without a name" for name in repeated)
            raise ValueError(f"the names of {what} must differ; {told} is there more than once. Rename or remove one.")
    return evaluations
