"""Any recipe file by one door: our own format, or either dialect of SparseML, told apart by what they hold."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prunegpt.errors import Problem
from prunegpt.recipes.convert import to_recipe
from prunegpt.recipes.learning_rate import LearningRateCurve
from prunegpt.recipes.matching import Tensors
from prunegpt.recipes.meaning import RecipeMeaning, StageMeaning, meaning_of
from prunegpt.recipes.own import Recipe, recipe_of
from prunegpt.recipes.reader import dialect_of
from prunegpt.recipes.source import RecipeError, parse, read_text
from prunegpt.spec.read import parse_value


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None, *, strict: bool = True) -> Recipe:
    """What a training stage takes from a recipe file.

    Args:
        path: YAML, JSON or Markdown with YAML front matter.
        overrides: variable -> value; in our own format dotted path -> value.
        strict: refuse a SparseML recipe that asks for something unsupported, since without it the run would be another
            experiment; otherwise it is left out and noted.

    Raises:
        RecipeError: all problems, with their lines.
    """
    return to_recipe(read_meaning(path, overrides), strict=strict)


def read_meaning(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
    tensors: Tensors | None = None,
) -> RecipeMeaning:
    """What a recipe file means: any dialect, any number of stages, supported or not.

    Args:
        path: as of :func:`load_recipe`, and overrides.
        version: of SparseML, to prune what its keywords matched there; needs `tensors`.
        tensors: the parameters of the model.

    Raises:
        RecipeError: all problems, with their lines.
        MatchingError: `version` is none, or is given without `tensors`.
    """
    return meaning_of_text(read_text(Path(path)), str(path), overrides, version=version, tensors=tensors)


def meaning_of_text(
    text: str,
    source: str = "the recipe",
    overrides: Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
    tensors: Tensors | None = None,
) -> RecipeMeaning:
    """As :func:`read_meaning`, from text."""
    data = parse(text, source)
    dialect = dialect_of(data, source)
    if dialect == "own":
        return _own_meaning(recipe_of(data, source, overrides), source)
    if overrides:
        data = parse(text, source, overrides)
    return meaning_of(data, source, dialect, version=version, tensors=tensors)


def _own_meaning(recipe: Recipe, source: str) -> RecipeMeaning:
    """A recipe of our own as a meaning, so that it is described and converted like the others."""
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
    """`NAME=VALUE` texts of a command line as a mapping; values are YAML.

    Raises:
        RecipeError: not NAME=VALUE, or a value that is no YAML; all of them.
    """
    found: dict[str, Any] = {}
    problems = []
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            problems.append(Problem("", f"an override must be NAME=VALUE, such as sparsity=0.8, but got {item!r}."))
            continue
        try:
            found[name.strip()] = parse_value(text)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(name.strip(), str(error)))
    if problems:
        raise RecipeError(problems, "overrides")
    return found
