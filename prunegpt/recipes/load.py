"""Any recipe file by one door: our own format, or either dialect of SparseML, told apart by what they hold."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prunegpt.errors import Problem, nearest
from prunegpt.recipes.convert import to_recipe
from prunegpt.recipes.legacy import parse_legacy
from prunegpt.recipes.matching import Tensors
from prunegpt.recipes.meaning import RecipeMeaning, StageMeaning, meaning_of
from prunegpt.recipes.modifiers import Dialect
from prunegpt.recipes.own import SECTIONS, Recipe, recipe_of
from prunegpt.recipes.pruning import Pruning
from prunegpt.recipes.session import parse_session
from prunegpt.recipes.source import Fields, Items, RecipeError, Tree, parse, read_text, tags
from prunegpt.spec.read import parse_value
from prunegpt.spec.schema import GradualSpec


def load_recipe(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    strict: bool = True,
    version: str | None = None,
    tensors: Tensors | None = None,
) -> Recipe:
    """What a training stage takes from a recipe file.

    Args:
        path: YAML, JSON or Markdown with YAML front matter.
        overrides: variable -> value; in our own format dotted path -> value.
        strict: refuse a SparseML recipe that asks for something unsupported, since without it the run would be another
            experiment; otherwise it is left out and noted.
        version: of SparseML, to prune what its keywords matched there; needs `tensors`.
        tensors: the parameters of the model.

    Raises:
        RecipeError: all problems, with their lines.
        MatchingError: `version` is none, or is given without `tensors`.
    """
    text, source = read_text(Path(path)), str(path)
    tree = parse(text, source)
    if dialect_of(tree, source) == "own":
        return recipe_of(tree, source, overrides)
    return to_recipe(meaning_of_text(text, source, overrides, version=version, tensors=tensors), strict=strict)


def read_meaning(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
    tensors: Tensors | None = None,
) -> RecipeMeaning:
    """What a recipe file means, for showing: any dialect, any number of stages, supported or not.

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
    tree = parse(text, source)
    dialect = dialect_of(tree, source)
    if dialect == "own":
        return own_meaning(recipe_of(tree, source, overrides))
    if overrides:
        tree = parse(text, source, overrides)
    parsed = parse_legacy(tree, source) if dialect == "legacy" else parse_session(tree, source)
    return meaning_of(parsed, version=version, tensors=tensors)


def dialect_of(tree: Tree, source: str) -> Dialect:
    """The dialect of a recipe: tags mean legacy, stages or modifiers without tags session, our sections own.

    Raises:
        RecipeError: none of them.
    """
    if next(tags(tree), None) is not None:
        return "legacy"
    if isinstance(tree, Fields):
        names = set(tree.by_name)
        if any(name == "stages" or name.endswith("_stage") for name in names):
            return "session"
        lists = [value for name, value in tree.by_name.items() if "modifiers" in name]
        if lists:
            empty = all(
                not isinstance(value, Fields) and not (isinstance(value, Items) and value.items) for value in lists
            )
            return "legacy" if empty else "session"
        if names & set(SECTIONS):
            return "own"
        close = [name for name in nearest(next(iter(names), ""), SECTIONS) if names][:1]
        hint = f" Did you mean {close[0]!r}?" if close else ""
        message = (
            f"a recipe must hold {', '.join(SECTIONS)}, or the modifiers of SparseML, but holds "
            f"{', '.join(sorted(names)[:8]) or 'nothing'}.{hint}"
        )
        raise RecipeError([Problem("", message, tree.line)], source)
    raise RecipeError(
        [Problem("", "a recipe must be a mapping or a list of modifiers, but is neither.", tree.line)], source
    )


def own_meaning(recipe: Recipe) -> RecipeMeaning:
    """A recipe of our own as a meaning, so that it is described and simulated like the others."""
    epochs = recipe.train.get("num_train_epochs")
    stage = StageMeaning(
        "",
        "train",
        1,
        float(epochs) if epochs is not None else None,
        dict(recipe.train),
        recipe.prune.model_dump(exclude_unset=True) if recipe.prune else None,
        recipe.distill,
        recipe.learning_rate,
        recipe.learning_rate is not None,
        (_pruning(recipe.prune),) if recipe.prune else (),
    )
    return RecipeMeaning(recipe.source, "own", (stage,))


def _pruning(spec: GradualSpec) -> Pruning:
    allocation = spec.allocation
    finals = dict(allocation) if isinstance(allocation, Mapping) else {}
    final = spec.sparsity if spec.sparsity is not None else max(finals.values(), default=_fixed(spec.pattern))
    return Pruning(
        "prune",
        1,
        "",
        "own",
        spec.targets,
        spec.method,
        spec.pattern,
        spec.initial,
        final,
        finals,
        spec.start,
        spec.end,
        spec.every,
        spec.schedule,
        spread=allocation if isinstance(allocation, str) else None,
        unit=spec.unit,
        written_update=True,
    )


def _fixed(pattern: str) -> float:
    kept, _, group = pattern.partition(":")
    return 1 - int(kept) / int(group) if group else 0.0


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
