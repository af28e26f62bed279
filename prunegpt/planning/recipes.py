"""A training stage that names a recipe takes from it what it does not say itself."""

from pathlib import Path

from pydantic import ValidationError

from prunegpt.errors import PruneGPTError, SpecError
from prunegpt.planning.sources import find_local
from prunegpt.recipes.load import load_recipe
from prunegpt.spec.schema import DistillSpec, FinetuneSpec, StageConfig


def with_recipe(config: StageConfig, base: Path | None) -> StageConfig:
    """The stage with its recipe, where it names one, read in.

    Args:
        base: the spec's folder.

    Raises:
        PruneGPTError: the recipe is missing or has problems, all of them listed; or it distils and the stage does not.
    """
    if not isinstance(config, FinetuneSpec) or not config.recipe:
        return config
    path = find_local(str(config.recipe), base)
    if path is None or not path.is_file():
        raise PruneGPTError(f"recipe {config.recipe} does not exist. Check its path.")
    try:
        recipe = load_recipe(path, dict(config.recipe_args))
    except SpecError as error:
        listed = "; ".join(str(problem) for problem in error.problems)
        raise PruneGPTError(f"recipe {config.recipe}: {listed}") from error
    distill = recipe.pop("distill", None)
    if distill is not None and not isinstance(config, DistillSpec):
        raise PruneGPTError(
            f"recipe {config.recipe} distils, so its stage must be a distill stage with a teacher; it is finetune."
        )
    said = {name: value for name in config.model_fields_set if (value := getattr(config, name)) not in (None, ())}
    both = {**recipe, **(distill or {}), **said, "train": {**recipe.get("train", {}), **config.train}, "recipe": None}
    try:
        return type(config).model_validate(both)
    except ValidationError as error:
        raise PruneGPTError(f"recipe {config.recipe}: {error.errors()[0]['msg']}") from error
