"""Any recipe file: our own format, or either dialect of SparseML, distinguished by their content.

Our own has the sections `train`, `prune`, `distill`, `learning_rate`, `keep_zeros`: the fields of one training stage.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model

from prunegpt.errors import Problem
from prunegpt.recipes.convert import to_mapping
from prunegpt.recipes.learning_rate import LearningRateCurve, Segment
from prunegpt.recipes.matching import ModelNames
from prunegpt.recipes.meaning import RecipeMeaning, StageMeaning, meaning_of
from prunegpt.recipes.reader import dialect_of
from prunegpt.recipes.source import RecipeError, nodes, parse, read_text
from prunegpt.spec.part import Part
from prunegpt.spec.paths import set_path
from prunegpt.spec.problems import problems_of
from prunegpt.spec.read import Document, parse_value
from prunegpt.spec.schema import Arguments, DistillSpec, FinetuneSpec, GradualSpec, TeacherModel


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None, *, strict: bool = True) -> dict[str, Any]:
    """The sections of a recipe file that it has, in our own format.

    Args:
        path: YAML, JSON or Markdown with YAML front matter.
        overrides: variable -> value; in our own format dotted path -> value.
        strict: refuse a SparseML recipe that asks for something unsupported, since without it the run would be another
            experiment; otherwise it is left out and noted.

    Raises:
        RecipeError: all problems, with their lines.
    """
    sections = to_mapping(read_meaning(path, overrides), strict=strict)
    if curve := sections.get("learning_rate"):  # whole segments: they are part of the stage's key
        sections["learning_rate"] = [Segment.model_validate(item).model_dump() for item in curve]
    return sections


def read_meaning(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
    model: ModelNames | None = None,
) -> RecipeMeaning:
    """As :func:`meaning_of_text`, from a file."""
    return meaning_of_text(read_text(Path(path)), str(path), overrides, version=version, model=model)


def meaning_of_text(
    text: str,
    source: str = "the recipe",
    overrides: Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
    model: ModelNames | None = None,
) -> RecipeMeaning:
    """What a recipe means: any dialect, any number of stages, supported or not.

    Args:
        text: YAML, JSON or Markdown with YAML front matter.
        source: names the recipe in errors.
        overrides: variable -> value; in our own format dotted path -> value.
        version: of SparseML, such as 0.9: prune exactly what the keywords matched there, which needs `model`. None =
            the matrices inside decoder layers.
        model: what there is to match.

    Raises:
        RecipeError: all problems, with their lines.
        MatchingError: `version` is none, or is given without `model`.
    """
    data = parse(text, source)
    dialect = dialect_of(data, source)
    if dialect == "own":
        return _own_meaning(data, text, source, overrides or {})
    if overrides:
        data = parse(text, source, overrides)
    return meaning_of(data, source, dialect, version, model)


_DISTILL: dict[str, Any] = {
    name: (info.rebuild_annotation(), info)
    for name, info in DistillSpec.model_fields.items()
    if name not in FinetuneSpec.model_fields
}
_DISTILL["teacher"] = (str | TeacherModel | None, Field(None, description="as in a spec"))
_Distill: type[Part] = create_model("Distill", __base__=Part, **_DISTILL)


class _Recipe(Part):
    """Our own format."""

    train: Arguments = Field({}, description="names of transformers.TrainingArguments")
    prune: GradualSpec | None = Field(None, description="pruning while training")
    distill: _Distill | None = Field(None, description="as a stage `distill`, without what trains")
    learning_rate: tuple[Segment, ...] = Field((), description="segments of a curve, instead of a scheduler")
    keep_zeros: bool = Field(False, description="every zero in the matrices of the decoder layers stays zero")


def _own_meaning(data: dict[str, Any], text: str, source: str, overrides: Mapping[str, Any]) -> RecipeMeaning:
    problems = []
    for name, value in overrides.items():
        try:
            set_path(data, name.split("."), value)
        except (ValueError, TypeError) as error:
            problems.append(Problem(name, str(error)))
    if problems:
        raise RecipeError(problems, source)
    given = {name: value for name, value in data.items() if value is not None}
    try:
        recipe = _Recipe.model_validate(given)
    except ValidationError as error:
        raise RecipeError(problems_of(error, _Recipe, Document(given, nodes(text, source), source)), source) from error
    epochs = recipe.train.get("num_train_epochs")
    stage = StageMeaning(
        "",
        "train",
        1,
        float(epochs) if epochs is not None else None,
        recipe.train,
        recipe.prune.model_dump(exclude_unset=True) if recipe.prune else None,
        recipe.distill.model_dump(exclude_unset=True) if recipe.distill else None,
        LearningRateCurve(segments=recipe.learning_rate) if recipe.learning_rate else None,
        bool(recipe.learning_rate),
        keep_zeros=recipe.keep_zeros,
    )
    return RecipeMeaning(source, "own", (stage,))


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """`NAME=VALUE` strings of a command line as a mapping; values are YAML.

    Raises:
        RecipeError: not NAME=VALUE, or a value that is no YAML; all of them.
    """
    found: dict[str, Any] = {}
    problems = []
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            problems.append(Problem("", f"an override must be NAME=VALUE, such as sparsity=0.8, got {item!r}."))
            continue
        try:
            found[name.strip()] = parse_value(text)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(name.strip(), str(error)))
    if problems:
        raise RecipeError(problems, "overrides")
    return found
