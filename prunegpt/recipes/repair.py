"""The commonest broken recipe: a `- !Modifier` indented under the one before it. Says what to change."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from prunegpt.errors import Problem

_ITEM = re.compile(r"^( *)- +!([\w.]+)")
_LIST = re.compile(r"^ *\w*modifiers:\s*(#.*)?$")


@dataclass(frozen=True)
class Repair:
    """One line that has to move left."""

    line: int  # counted from 1
    modifier: str
    found: int  # spaces before the dash
    wanted: int
    under: str  # the modifier that the line would belong to


def suggest(text: str) -> tuple[str, list[Repair]]:
    """The text with every `- !Modifier` moved to the leftmost column of its list, and what was moved.

    Args:
        text: YAML that does not parse.
    """
    lines = text.split("\n")
    lists: list[list[tuple[int, int, str]]] = [[]]  # index of the line, spaces before the dash, modifier
    for index, line in enumerate(lines):
        if match := _ITEM.match(line):
            lists[-1].append((index, len(match[1]), match[2]))
        elif _LIST.match(line):
            lists.append([])
    repairs = []
    for items in lists:
        wanted = min((indent for _, indent, _ in items), default=0)
        under = ""
        for index, indent, modifier in items:
            if indent > wanted:
                repairs.append(Repair(index + 1, modifier, indent, wanted, under))
                lines[index] = " " * wanted + lines[index][indent:]
            under = modifier
    return "\n".join(lines), repairs


def repaired(text: str, is_valid: Callable[[str], bool]) -> Problem | None:
    """The problem of a text that indentation alone breaks, with the fix; None where it would not help."""
    fixed, repairs = suggest(text)
    if not repairs or not is_valid(fixed):
        return None
    first = repairs[0]
    inside = f", so that it stands inside !{first.under}" if first.under else ""
    more = "" if len(repairs) == 1 else f" The same holds for line {', '.join(str(item.line) for item in repairs[1:])}."
    return Problem(
        "",
        f"the items of a list must begin in one column, but `- !{first.modifier}` begins after {first.found} spaces "
        f"and others after {first.wanted}{inside}. "
        f"Remove {first.found - first.wanted} spaces before its dash.{more}",
        first.line,
    )
