"""A recipe's meaning in our own format: one recipe for one training stage, or a list of a spec's `stages`."""

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

from prunegpt.errors import Problem
from prunegpt.recipes.meaning import RecipeMeaning, StageMeaning
from prunegpt.recipes.source import RecipeError


def to_mapping(meaning: RecipeMeaning, *, strict: bool = True) -> dict[str, Any]:
    """The sections of our own recipe format.

    Args:
        meaning: of a recipe with one stage that trains.
        strict: refuse what is not supported, since without it the run would be another experiment.

    Raises:
        RecipeError: the recipe has several stages or one that does not train, or `strict` and something is unsupported.
    """
    stages = _active(meaning)
    if len(stages) != 1 or stages[0].run != "train":
        names = ", ".join(f"{stage.name or 'unnamed'} ({stage.run})" for stage in stages)
        message = (
            f"a recipe of our own must be one stage that trains; this one has: {names}. Convert it to the stages of a "
            "spec."
        )
        raise RecipeError([Problem("", message, stages[0].line)], meaning.source)
    _check(meaning, strict)
    return stages[0].sections


def to_stages(meaning: RecipeMeaning, *, teacher: str | None = None, strict: bool = True) -> list[dict[str, Any]]:
    """The recipe as the `stages` of a trial: prune, finetune and distill in order.

    Args:
        meaning: of any recipe.
        teacher: of the stages that distil: a trial, or SWEEP/TRIAL.
        strict: refuse what is not supported.

    Raises:
        RecipeError: `strict` and something is unsupported; or a stage distils and no teacher is given.
    """
    _check(meaning, strict)
    problems = []
    chain: list[dict[str, Any]] = []
    for stage in _active(meaning):
        if stage.run == "oneshot":
            chain += [{"prune": dict(stage.prune)}] if stage.prune is not None else []
            continue
        sections = stage.sections
        distill = sections.pop("distill", None)
        if distill is None:
            chain.append({"finetune": sections})
        elif teacher is None:
            message = "a stage that distils must have a teacher; none was given. Name a trial."
            problems.append(Problem(stage.name, message, stage.line))
        else:
            chain.append({"distill": {"teacher": teacher, **distill, **sections}})
    if problems:
        raise RecipeError(problems, meaning.source)
    return chain


def to_yaml(data: Any) -> str:
    """Plain data as YAML, keys in their order."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    yaml.dump(_plain(data), stream)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _active(meaning: RecipeMeaning) -> tuple[StageMeaning, ...]:
    """The stages that do something; all where none does."""
    return tuple(stage for stage in meaning.stages if stage.run == "train" or stage.prunings) or meaning.stages


def _check(meaning: RecipeMeaning, strict: bool) -> None:
    if strict and meaning.unsupported:
        problems = [
            Problem(note.modifier, f"not supported: {note.text} Remove it, or convert without it.", note.line)
            for note in meaning.unsupported
        ]
        raise RecipeError(problems, meaning.source)
