"""Tables inside a README: only the text between two markers is ours.

    <!-- prunegpt:table NAME -->
    ...
    <!-- /prunegpt:table -->

A marker has its own line. NAME is a sweep, for all its tables, or SWEEP/TABLE. Markers inside fenced code are text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prunegpt.errors import ReportError, listed, nearest
from prunegpt.root import write_text

_OPEN = re.compile(r"\s*<!--\s*prunegpt:table\s+(\S+)\s*-->\s*")
_CLOSE = re.compile(r"\s*<!--\s*/prunegpt:table\s*-->\s*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True)
class Region:
    """The position of a marked table."""

    name: str
    first: int  # line after the opening marker, counted from 0
    end: int  # line of the closing marker


def find_regions(text: str, source: str = "the file") -> list[Region]:
    """All marked regions, in order.

    Raises:
        ReportError: a region that is not closed, is closed twice, or is inside another.
    """
    found: list[Region] = []
    opened: tuple[str, int] | None = None
    fence = ""
    for number, line in enumerate(text.splitlines()):
        fenced = _FENCE.match(line)
        if fence:
            if fenced and fenced[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
            continue
        if fenced and opened is None:
            fence = fenced[1]
            continue
        if start := _OPEN.fullmatch(line):
            if opened:
                raise ReportError(
                    f"a table region must be closed before the next; {source} line {number + 1} opens {start[1]!r} "
                    f"inside {opened[0]!r}. Add <!-- /prunegpt:table --> before it."
                )
            opened = (start[1], number + 1)
        elif _CLOSE.fullmatch(line):
            if opened is None:
                raise ReportError(
                    f"a table region must be opened before it is closed; {source} line {number + 1} closes none. Add "
                    "<!-- prunegpt:table NAME --> above it, or remove it."
                )
            found.append(Region(opened[0], opened[1], number))
            opened = None
    if opened:
        raise ReportError(
            f"a table region must be closed; {opened[0]!r} in {source} line {opened[1]} is not. Add a line <!-- "
            "/prunegpt:table --> where the table ends."
        )
    return found


def replace_regions(text: str, tables: Mapping[str, str], source: str = "the file") -> str:
    """The text with every region of these names holding its Markdown; everything else is kept to the byte.

    Args:
        tables: name of a region -> Markdown; the first is the one that is asked for where none of them is there.

    Raises:
        ReportError: there is no such region (the message explains how to add one), or a marker in the Markdown.
    """
    regions = find_regions(text, source)
    mine = [region for region in regions if region.name in tables]
    if not mine:
        name = next(iter(tables))
        others = [region.name for region in regions]
        there = f" It has {listed(nearest(name, others))}." if others else ""
        raise ReportError(
            f"a table is written between its markers; {source} has none for {name!r}.{there} Add these two lines "
            f"where it should be:\n<!-- prunegpt:table {name} -->\n<!-- /prunegpt:table -->"
        )
    lines = text.splitlines(keepends=True)
    ending = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    for region in reversed(mine):
        content = tables[region.name].strip("\n").splitlines()
        if any(_OPEN.fullmatch(line) or _CLOSE.fullmatch(line) for line in content):
            raise ReportError(
                f"a table must not hold a marker line itself; {region.name!r} does. Change its title or labels."
            )
        # blank lines around, or Markdown would take the comment for an HTML block that reaches into the table
        lines[region.first : region.end] = [line + ending for line in ("", *content, "")]
    return "".join(lines)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # bytes: line endings stay as they are
    except FileNotFoundError as error:
        raise ReportError(f"{path} does not exist. Create it with its markers.") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path} is not UTF-8 text: {error}.") from error


def update_file(path: Path, tables: Mapping[str, str]) -> bool:
    """Rewrites the regions of these names in a file; returns whether anything changed.

    Raises:
        ReportError: no such file or region; see `replace_regions`.
    """
    before = _read(path)
    after = replace_regions(before, tables, str(path))
    if after == before:
        return False
    write_text(path.resolve(), after)
    return True
