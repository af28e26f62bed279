"""The commonest broken recipe: a `- !Modifier` indented under the one before it. Says what to change."""

import re
from collections.abc import Callable
from typing import NamedTuple

from prunegpt.errors import Problem

_ITEM = re.compile(r"^( *)- +!([\w.]+)")
_LIST = re.compile(r"^ *\w*modifiers:\s*(#.*)?$")


class Repair(NamedTuple):
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
                lines[index] = lines[index][indent - wanted :]
            under = modifier
    return "\n".join(lines), repairs


def repaired(text: str, is_valid: Callable[[str], bool]) -> Problem | None:
    """The problem of a text that indentation alone breaks, with the fix; None where it would not help."""
    fixed, repairs = suggest(text)
    if not repairs or not is_valid(fixed):
        return None
    line, modifier, found, wanted, under = repairs[0]
    inside = f", so that it stands inside !{under}" if under else ""
    more = "" if len(repairs) == 1 else f" The same holds for line {', '.join(str(item.line) for item in repairs[1:])}."
    message = (
        f"the items of a list must begin in one column, but `- !{modifier}` begins after {found} spaces and others "
        f"after {wanted}{inside}. Remove {found - wanted} spaces before its dash.{more}"
    )
    return Problem("", message, line)
