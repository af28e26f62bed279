"""Our own recipe format: the sections `train`, `prune`, `distill` and `learning_rate` of one training stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model

from prunegpt.errors import Problem
from prunegpt.recipes.learning_rate import LearningRateCurve, Segment
from prunegpt.recipes.modifiers import Dialect
from prunegpt.recipes.notes import Defect, Note
from prunegpt.recipes.source import Fields, Items, RecipeError, Tree, parse, plain, read_text, tags
from prunegpt.spec.part import Part
from prunegpt.spec.problems import problems_of
from prunegpt.spec.read import Document, set_path
from prunegpt.spec.schema import Arguments, DistillSpec, FinetuneSpec, GradualSpec, TeacherModel

SECTIONS = ("train", "prune", "distill", "learning_rate")

_DISTILL_FIELDS: dict[str, Any] = {
    name: (info.rebuild_annotation(), info)
    for name, info in DistillSpec.model_fields.items()
    if name not in FinetuneSpec.model_fields and name != "teacher"
}
_DISTILL_FIELDS["teacher"] = (str | TeacherModel | None, Field(None, description="as in a spec"))
_DISTILL: type[Part] = create_model("Distill", __base__=Part, **_DISTILL_FIELDS)
_RECIPE: type[Part] = create_model(
    "Recipe",
    __base__=Part,
    train=(Arguments, Field({}, description="names of transformers.TrainingArguments")),
    prune=(GradualSpec | None, Field(None, description="pruning while training")),
    distill=(_DISTILL | None, Field(None, description="as a stage `distill`, without what trains")),
    learning_rate=(tuple[Segment, ...], Field((), description="segments of a curve, instead of a scheduler")),
)


@dataclass(frozen=True)
class Recipe:
    """What one training stage takes from a recipe.

    Attributes:
        source: the file.
        train: names of transformers.TrainingArguments.
        prune: pruning while training; None where there is none. `model_fields_set` tells what the recipe says itself.
        distill: fields of a spec's `distill` that the recipe says itself; None where it does not distil.
        learning_rate: a curve that a callback has to follow, since no scheduler gives it; None otherwise.
        notes: on the modifiers of a SparseML recipe.
        defects: known ones.
        dialect: the recipe was written in; a `legacy` one counts on SparseML's drifting clock
            (:func:`prunegpt.recipes.simulate.update_steps`).
    """

    source: str
    train: Mapping[str, Any] = field(default_factory=dict)
    prune: GradualSpec | None = None
    distill: Mapping[str, Any] | None = None
    learning_rate: LearningRateCurve | None = None
    notes: tuple[Note, ...] = ()
    defects: tuple[Defect, ...] = ()
    dialect: Dialect = "own"


@dataclass(frozen=True)
class _TreeDocument(Document):
    """A document whose lines come from a tree."""

    def line(self, path: Sequence[str | int]) -> int | None:
        tree: Tree = self.marked
        line = None
        for step in path:
            if isinstance(tree, Fields) and step in tree.by_name:
                line, tree = tree.lines[str(step)], tree.by_name[str(step)]
            elif isinstance(tree, Items) and isinstance(step, int) and step < len(tree.items):
                tree = tree.items[step]
                line = tree.line
            else:
                break
        return line


def read_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe in our own format.

    Args:
        path: a YAML file.
        overrides: dotted path -> value, such as `prune.sparsity`.

    Raises:
        RecipeError: not readable, or not valid; all problems with their lines.
    """
    return recipe_of(parse(read_text(path), str(path)), str(path), overrides)


def recipe_of(tree: Tree, source: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """As read_recipe, from a parsed tree."""
    data = plain(tree)
    if not isinstance(data, dict) or next(tags(tree), None) is not None:
        message = f"a recipe must be a mapping of {', '.join(SECTIONS)} without tags."
        raise RecipeError([Problem("", message, tree.line)], source)
    problems = []
    for name, value in (overrides or {}).items():
        try:
            set_path(data, name.split("."), value)
        except (ValueError, TypeError) as error:
            problems.append(Problem(name, str(error)))
    if problems:
        raise RecipeError(problems, source)
    data = {name: value for name, value in data.items() if value is not None}
    return validated(data, source, _TreeDocument(data, tree, source))


def validated(data: Mapping[str, Any], source: str, document: Document | None = None) -> Recipe:
    """The recipe of plain data.

    Args:
        data: section -> fields.
        source: names the recipe in errors.
        document: tells lines.

    Raises:
        RecipeError: not valid; all problems.
    """
    try:
        sections: Any = _RECIPE.model_validate(data)
    except ValidationError as error:
        where = document or Document(dict(data), None, source)
        raise RecipeError(problems_of(error, _RECIPE, where), source) from error
    segments: tuple[Segment, ...] = sections.learning_rate
    return Recipe(
        source,
        sections.train,
        sections.prune,
        sections.distill.model_dump(exclude_unset=True) if sections.distill is not None else None,
        LearningRateCurve(segments=segments) if segments else None,
    )
