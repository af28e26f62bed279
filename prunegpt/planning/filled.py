"""What a stage's config takes from elsewhere: a recipe, a criterion in a file, and the curves that a sweep measured."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from prunegpt.errors import PruneGPTError, SpecError
from prunegpt.planning.fingerprint import Files
from prunegpt.planning.sources import find_local
from prunegpt.recipes.load import load_recipe
from prunegpt.spec.code import CodePart
from prunegpt.spec.schema import DistillSpec, FinetuneSpec, PruneSpec, StageConfig

SensitivityCurve = tuple[tuple[float, float], ...]  # (sparsity, loss increase in nats per token), ascending
SensitivityCurvesOf = Callable[[str], Mapping[str, SensitivityCurve]]  # sweep -> layer index as text -> its curve
_Pruning = TypeVar("_Pruning", bound=PruneSpec)


def filled(
    config: StageConfig, base: Path | None, files: Files, curves_of: SensitivityCurvesOf | None = None
) -> StageConfig:
    """The stage with its recipe, where it names one, read in, and its pruning complete.

    Args:
        base: the spec's folder.
        files: the hash of a criterion's file is taken from it.
        curves_of: what sweeps have measured, for allocation `sensitivity`.

    Raises:
        PruneGPTError: a file is missing; the recipe has problems, all of them listed, or distils and the stage does
            not; no sweep of curves is named, or it has not measured single blocks.
    """
    if isinstance(config, FinetuneSpec):
        config = _with_recipe(config, base)
        if config.prune is None:
            return config
        return config.model_copy(update={"prune": _with_curves(_with_code(config.prune, base, files), curves_of)})
    if isinstance(config, PruneSpec):
        return _with_curves(_with_code(config, base, files), curves_of)
    return config


def _with_recipe(config: FinetuneSpec, base: Path | None) -> FinetuneSpec:
    """What the stage does not say itself comes from the recipe."""
    if not config.recipe:
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


def _with_code(prune: _Pruning, base: Path | None, files: Files) -> _Pruning:
    """A criterion in a file goes by the file's place and the hash of its content."""
    code = CodePart.of(prune.method)
    if code is None:
        return prune
    path = find_local(code.path, base)
    if path is None or not path.is_file():
        raise PruneGPTError(f"criterion {code}: {code.path} does not exist. Check its path.")
    return prune.model_copy(update={"method": str(replace(code, path=str(path), digest=files.hash(path)))})


def _with_curves(prune: _Pruning, curves_of: SensitivityCurvesOf | None) -> _Pruning:
    """Allocation `sensitivity` gets the measured curve of each block."""
    if prune.allocation != "sensitivity" or prune.curves:
        return prune
    sweep = prune.options.get("sweep")
    if not isinstance(sweep, str):
        raise PruneGPTError(
            "allocation sensitivity spends the budget by measured curves; options.sweep does not name the sweep that "
            "measured them. Set options: {sweep: NAME}."
        )
    curves = curves_of(sweep) if curves_of else {}
    if not curves:
        raise PruneGPTError(
            f"allocation sensitivity needs finished trials that prune one block each; sweep {sweep!r} has none. Run it "
            "first: one trial per layer, pruned with `layers: [N]`."
        )
    return prune.model_copy(update={"curves": curves})
