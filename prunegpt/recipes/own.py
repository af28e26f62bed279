"""Our own recipe format: the sections `train`, `prune`, `distill` and `learning_rate` of one training stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError, create_model

from prunegpt.errors import Problem
from prunegpt.recipes.learning_rate import Segment
from prunegpt.recipes.source import Map, RecipeError, line_of
from prunegpt.spec.part import Part
from prunegpt.spec.problems import problems_of
from prunegpt.spec.read import Document, set_path
from prunegpt.spec.schema import Arguments, DistillSpec, FinetuneSpec, GradualSpec, TeacherModel

_DISTILL: dict[str, Any] = {
    name: (info.rebuild_annotation(), info)
    for name, info in DistillSpec.model_fields.items()
    if name not in FinetuneSpec.model_fields
}
_DISTILL["teacher"] = (str | TeacherModel | None, Field(None, description="as in a spec"))
_Distill: type[Part] = create_model("Distill", __base__=Part, **_DISTILL)


class Recipe(Part):
    """What one training stage takes from a recipe."""

    train: Arguments = Field({}, description="names of transformers.TrainingArguments")
    prune: GradualSpec | None = Field(None, description="pruning while training")
    distill: _Distill | None = Field(None, description="as a stage `distill`, without what trains")
    learning_rate: tuple[Segment, ...] = Field((), description="segments of a curve, instead of a scheduler")
    keep_zeros: bool = Field(False, description="every zero in the matrices of the decoder layers stays zero")

    @property
    def stage(self) -> dict[str, Any]:
        """What it says itself, as fields of a stage `finetune`, or `distill` where it distils."""
        said: dict[str, Any] = {"train": self.train}
        if self.prune is not None:
            said["prune"] = self.prune
        if self.keep_zeros:
            said["keep_zeros"] = True
        if self.learning_rate:
            said["learning_rate"] = tuple(segment.model_dump() for segment in self.learning_rate)
        return said | (self.distill.model_dump(exclude_unset=True) if self.distill else {})


@dataclass(frozen=True)
class _Lines(Document):
    """A document that remembers its lines as a recipe does."""

    def line(self, path: Sequence[str | int]) -> int | None:
        part, line = self.marked, None
        for step in path:
            if isinstance(part, Map) and step in part:
                line, part = part.lines.get(str(step), line), part[str(step)]
            elif isinstance(part, list) and isinstance(step, int) and step < len(part):
                part = part[step]
                line = line_of(part, line or 1)
            else:
                break
        return line


def recipe_of(data: Mapping[str, Any], source: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe in our own format.

    Args:
        data: section -> fields, parsed or converted.
        source: names the recipe in errors.
        overrides: dotted path -> value, such as `prune.sparsity`.

    Raises:
        RecipeError: not valid; all problems with their lines.
    """
    problems = []
    for name, value in (overrides or {}).items():
        try:
            set_path(data, name.split("."), value)
        except (ValueError, TypeError) as error:
            problems.append(Problem(name, str(error)))
    if problems:
        raise RecipeError(problems, source)
    given = {name: value for name, value in data.items() if value is not None}
    try:
        return Recipe.model_validate(given)
    except ValidationError as error:
        raise RecipeError(problems_of(error, Recipe, _Lines(given, data, source)), source) from error
