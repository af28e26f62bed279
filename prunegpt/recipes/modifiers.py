"""What both dialects of SparseML recipes are parsed into: a list of modifiers, each with its line and stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Dialect = Literal["legacy", "session", "own"]
Run = Literal["train", "oneshot"]


@dataclass(frozen=True)
class Modifier:
    """One modifier, its expressions computed.

    Attributes:
        name: `GMPruningModifier`, without a framework before it.
        fields: name -> plain value.
        line: of the modifier in the file, counted from 1.
        group: the list it stands in: `modifiers`, `pruning_modifiers`.
        stage: empty where the recipe has no stages.
        lines: name of a field -> its line.
    """

    name: str
    fields: Mapping[str, Any]
    line: int
    group: str
    stage: str
    lines: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StageHeader:
    """A stage of a recipe.

    Attributes:
        name: empty where the recipe has no stages.
        line: where it begins.
        run: whether it trains; None where the recipe does not say.
    """

    name: str
    line: int
    run: Run | None


@dataclass(frozen=True)
class ParsedRecipe:
    """A SparseML recipe as it was written.

    Attributes:
        source: the file.
        dialect: `legacy` (lists of `!Tags`) or `session` (stages of `*_modifiers`).
        stages: in order; at least one.
        modifiers: in order.
        variables: name -> value, expressions computed; of a stage with the stage's name and a dot before it.
    """

    source: str
    dialect: Dialect
    stages: tuple[StageHeader, ...]
    modifiers: tuple[Modifier, ...]
    variables: Mapping[str, Any]
