"""What is said about a recipe: notes on its modifiers, and known defects with their fix."""

from dataclasses import dataclass
from typing import Literal

from prunegpt.recipes.reader import Modifier

Level = Literal["supported", "partly", "unsupported", "ignored"]


@dataclass(frozen=True)
class Note:
    """How far a modifier is honoured here.

    Attributes:
        modifier: its name.
        line: in the file, counted from 1.
        stage: of the recipe; empty where it has none.
        level: `supported`; `partly`, and the text says what is not; `unsupported`: without it the run would be another
            experiment; `ignored`: it decides nothing here.
        text: in words.
    """

    modifier: str
    line: int
    stage: str
    level: Level
    text: str

    @classmethod
    def on(cls, modifier: Modifier, level: Level, text: str) -> "Note":
        """A note on a modifier."""
        return cls(modifier.name, modifier.line, modifier.stage, level, text)


@dataclass(frozen=True)
class Defect:
    """Something that the recipe, or the version of SparseML that ran it, gets wrong.

    Attributes:
        code: a short name.
        line: in the file.
        text: what goes wrong there.
        fix: what to write, or what is done here.
    """

    code: str
    line: int
    text: str
    fix: str
