"""From modifiers to what they mean here: sections of a spec, notes on what is honoured, and known defects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunegpt.errors import Problem
from prunegpt.recipes.defects import name_defects
from prunegpt.recipes.matching import PRUNABLE, MatchingError, Tensors
from prunegpt.recipes.notes import Defect, Note
from prunegpt.recipes.reader import Dialect, Stage, parse_recipe
from prunegpt.recipes.source import RecipeError
from prunegpt.recipes.stage import StageBuilder, StageMeaning


@dataclass(frozen=True)
class RecipeMeaning:
    """What a recipe asks for, in our words.

    Attributes:
        source: the file.
        dialect: of SparseML, or own.
        stages: in order; a legacy recipe is one, whatever stages it has, since they share one clock.
        notes: one or more a modifier, in order.
        defects: known ones, of the recipe or of the versions that ran it.
        variables: of the recipe, expressions computed.
    """

    source: str
    dialect: Dialect
    stages: tuple[StageMeaning, ...]
    notes: tuple[Note, ...] = ()
    defects: tuple[Defect, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unsupported(self) -> tuple[Note, ...]:
        """The notes on what is not done here, without which the run would be another experiment."""
        return tuple(note for note in self.notes if note.level == "unsupported")


def meaning_of(
    data: Any, source: str, dialect: Dialect, *, version: str | None = None, tensors: Tensors | None = None
) -> RecipeMeaning:
    """What a SparseML recipe means here.

    Args:
        data: as :func:`prunegpt.recipes.source.parse` gives it.
        source: names the recipe in errors.
        dialect: `legacy` or `session`.
        version: of SparseML (a key of :data:`~prunegpt.recipes.matching.PRUNABLE`): prune exactly what the keywords
            matched there, which needs `tensors`. None = the matrices inside decoder blocks.
        tensors: the parameters of the model.

    Raises:
        RecipeError: no such modifiers or fields, and values out of their range; all of them.
        MatchingError: `version` is none, or is given without `tensors`.
    """
    if version is not None and (version not in PRUNABLE or tensors is None):
        raise MatchingError(
            f"a version must be one of {', '.join(PRUNABLE)} and goes with a model, but got {version!r}"
            f"{' without a model' if tensors is None else ''}."
        )
    problems: list[Problem] = []
    notes: list[Note] = []
    defects: list[Defect] = []
    stages: dict[str, StageMeaning] = {}
    written, variables = parse_recipe(data, source, dialect)
    if dialect == "legacy":  # they share one clock
        written = [Stage("", written[0].line, "train", [item for stage in written for item in stage.modifiers])]
    for stage in written:
        if stage.name in stages:
            problems.append(Problem(stage.name, "two stages must not have one name. Rename one.", stage.line))
            continue
        builder = StageBuilder(dialect, stage, problems)
        stages[stage.name] = builder.finish(version, tensors)
        notes += builder.notes
        defects += builder.defects
    if problems:
        raise RecipeError(problems, source)
    defects += name_defects(source, [item for meant in stages.values() for item in meant.prunings])
    first: dict[tuple[str, str], Defect] = {}  # one of a code and text, at its first line
    for defect in defects:
        first.setdefault((defect.code, defect.text), defect)
    return RecipeMeaning(source, dialect, tuple(stages.values()), tuple(notes), tuple(first.values()), variables)
