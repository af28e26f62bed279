"""Reads the fields of one modifier by name and kind, and collects problems and notes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunegpt.errors import Problem, shown, unknown
from prunegpt.recipes.catalogue import CATALOGUE, Level
from prunegpt.recipes.reader import Dialect, Modifier

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


@dataclass(frozen=True)
class ModifierNote:
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
    def on(cls, modifier: Modifier, level: Level, text: str) -> "ModifierNote":
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


class FieldReader:
    """The fields of a modifier of the catalogue, and the notes on it.

    What the catalogue does not have is a problem, and what it says of a field that is not honoured a note, before
    anything is read. Each method reads one field and gives the default where it is absent or wrong; what is wrong is
    added to `problems`.

    Args:
        one_shot: whether its stage does not train.
        epochs: the training's, where the recipe says it.
    """

    def __init__(
        self,
        modifier: Modifier,
        dialect: Dialect,
        problems: list[Problem],
        notes: list[ModifierNote],
        defects: list[Defect],
        *,
        one_shot: bool = False,
        epochs: float | None = None,
    ) -> None:
        self.modifier = modifier
        self.dialect = dialect
        self.one_shot = one_shot
        self.epochs = epochs
        self._problems = problems
        self._notes = notes
        self._defects = defects
        self._known = CATALOGUE[dialect][modifier.name]
        for name, value in modifier.fields.items():
            if name not in self._known:
                self.problem(name, unknown(f"field of {modifier.name}", name, sorted(self._known)))
            elif value is not None and self._known[name].level != "supported":
                usual = self._known[name].usual
                plain = self.flag(name, False) if usual and isinstance(usual[0], bool) else as_number(value)
                if value not in usual and (plain is None or plain not in usual):
                    self.lacks(name)

    def lacks(self, name: str) -> None:
        """Adds what the catalogue says of a field."""
        self.say(self._known[name].level, f"{name}: {self._known[name].text}")

    def say(self, level: Level, text: str) -> None:
        """Adds a note."""
        self._notes.append(ModifierNote.on(self.modifier, level, text))

    def partly(self, text: str) -> None:
        self.say("partly", text)

    def unsupported(self, text: str) -> None:
        self.say("unsupported", text)

    def defect(self, code: str, text: str, fix: str) -> None:
        """Adds a defect."""
        self._defects.append(Defect(code, self.modifier.line, text, fix))

    def problem(self, name: str, message: str) -> None:
        """Adds a problem at a field, or at the modifier where the field is absent."""
        line = self.modifier.lines.get(name, self.modifier.line)
        where = f"{self.modifier.name}.{name}" if name else self.modifier.name
        self._problems.append(Problem(where, message, line))

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.modifier.fields.get(name) is not None

    def raw(self, name: str) -> Any:
        """The unchanged value; None if absent."""
        assert name in self._known, f"{name} of {self.modifier.name} is not in the catalogue"
        return self.modifier.fields.get(name)

    def number(
        self, name: str, default: float | None = None, *, low: float = -math.inf, high: float = math.inf
    ) -> float:
        """A number between two bounds, ends included; required where it has no default."""
        value = self.raw(name)
        if value is None:
            if default is None:
                self.problem(name, f"{name} is required.")
            return default if default is not None else 0.0
        number = as_number(value)
        if number is None:
            self.problem(name, f"{name} must be a number, got {shown(value)}.")
        elif not low <= number <= high:
            hint = f" Did you mean {number / 100:g}?" if high == 1 and 1 < number <= 100 else ""
            bounds = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
            self.problem(name, f"{name} must be {bounds}, got {number:g}.{hint}")
        else:
            return number
        return default if default is not None else 0.0

    def flag(self, name: str, default: bool) -> bool:
        """True or false, also as text."""
        value = self.raw(name)
        if value is None:
            return default
        text = str(value).lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        self.problem(name, f"{name} must be true or false, got {shown(value)}.")
        return default

    def choice(self, name: str, default: str | None, valid: Sequence[str]) -> str:
        """One of several words."""
        value = self.raw(name)
        if value is None and default is not None:
            return default
        if value is None:
            self.problem(name, f"{name} is required: one of {', '.join(valid)}.")
        elif isinstance(value, str) and value in valid:
            return value
        else:
            self.problem(name, unknown(name, str(value)[:80], valid))
        return valid[0]

    def names(self, name: str) -> tuple[str, ...]:
        """A list of strings, or one."""
        value = self.raw(name)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        if all(isinstance(item, str) and item for item in items):
            return tuple(items)
        self.problem(name, f"{name} must be a name or a list of names, got {shown(value)}.")
        return ()

    def whole(self, name: str, default: int, *, low: int = 0) -> int:
        """A whole number."""
        value = self.raw(name)
        if value is None:
            return default
        number = as_number(value)
        if number is None or not number.is_integer() or number < low:
            self.problem(name, f"{name} must be a whole number from {low} on, got {shown(value)}.")
            return default
        return int(number)


def as_number(value: Any) -> float | None:
    """A finite number, also as text such as 1e-7 (which YAML 1.1 reads as text); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
