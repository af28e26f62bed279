"""From modifiers to what they mean here: sections of a spec, notes on what is honoured, and known defects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunegpt.errors import Problem
from prunegpt.recipes.defects import name_defects
from prunegpt.recipes.matching import PRUNABLE, MatchingError, Tensors
from prunegpt.recipes.modifiers import Dialect, ParsedRecipe, StageHeader
from prunegpt.recipes.notes import Defect, Note
from prunegpt.recipes.source import RecipeError
from prunegpt.recipes.stage import StageBuilder, StageMeaning


@dataclass(frozen=True)
class RecipeMeaning:
    """What a recipe asks for, in our words.

    Attributes:
        source: the file.
        dialect: of SparseML.
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


def meaning_of(parsed: ParsedRecipe, *, version: str | None = None, tensors: Tensors | None = None) -> RecipeMeaning:
    """What a SparseML recipe means here.

    Args:
        parsed: from :func:`~prunegpt.recipes.legacy.parse_legacy` or :func:`~prunegpt.recipes.session.parse_session`.
        version: of SparseML (a key of :data:`~prunegpt.recipes.matching.PRUNABLE`): prune exactly what the keywords
            matched there, which needs `tensors`. None = the matrices inside decoder blocks.
        tensors: the parameters of the model.

    Raises:
        RecipeError: unknown modifiers or fields, and values out of their range; all of them.
        MatchingError: `version` is none, or is given without `tensors`.
    """
    if version is not None and (version not in PRUNABLE or tensors is None):
        raise MatchingError(
            f"a version must be one of {', '.join(PRUNABLE)} and goes with a model, but got {version!r}"
            f"{' without a model' if tensors is None else ''}."
        )
    problems: list[Problem] = []
    headers = parsed.stages if parsed.dialect == "session" else (_whole(parsed),)
    stages, notes, defects = [], [], []
    for position, header in enumerate(headers):
        inside = [
            modifier for modifier in parsed.modifiers if parsed.dialect == "legacy" or modifier.stage == header.name
        ]
        if position and header.name in {earlier.name for earlier in headers[:position]}:
            problems.append(Problem(header.name, "two stages must not have one name. Rename one.", header.line))
            continue
        builder = StageBuilder(parsed.dialect, header, inside, problems)
        for modifier in inside:
            builder.add(modifier)
        stages.append(builder.finish(version, tensors))
        notes += builder.notes
        defects += builder.defects
    if problems:
        raise RecipeError(problems, parsed.source)
    every = tuple(item for stage in stages for item in stage.prunings)
    defects += name_defects(parsed.source, every)
    return RecipeMeaning(
        parsed.source, parsed.dialect, tuple(stages), tuple(notes), _once(defects), dict(parsed.variables)
    )


def _once(defects: list[Defect]) -> tuple[Defect, ...]:
    """One defect a code and text, at its first line."""
    found: dict[tuple[str, str], Defect] = {}
    for defect in defects:
        found.setdefault((defect.code, defect.text), defect)
    return tuple(found.values())


def _whole(parsed: ParsedRecipe) -> StageHeader:
    return StageHeader("", parsed.stages[0].line, "train")


__all__ = ["RecipeMeaning", "StageMeaning", "meaning_of"]
