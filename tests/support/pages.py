"""README and the pages under docs/, as their tests read them: blocks of commands, specs, files and links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from prunegpt.cli import app

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
README = CHECKOUT / "README.md"
PAGES = {path.relative_to(CHECKOUT).as_posix(): path for path in [README, *sorted(DOCS.rglob("*.md"))]}
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>(?:run|file|foreign)[^\n]*) -->\n)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S
)
_ACTS = {"--help", "--version", "--install-completion"}  # options that do something while they are parsed
_NEEDS = re.compile(r"#.*\bneeds?\b")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the mark in the line before it.

    Attributes:
        kind: `sh`, `yaml`, ...
        mark: `run`: a test runs its commands where the page is followed; `run: quickstart`: in a root that holds the
            quickstart; `file: NAME`: the reader saves it so; `foreign: WHAT`: a file of another tool; else empty.
    """

    kind: str
    mark: str
    body: str

    @property
    def commands(self) -> list[str]:
        """Its lines, continued ones joined, without those that are comments."""
        lines = self.body.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]

    @property
    def marked(self) -> bool:
        """Whether it says of every command what it needs."""
        first = self.body.splitlines()[0]
        return (first.startswith("#") and bool(_NEEDS.search(first))) or all(map(_NEEDS.search, self.commands))


def text(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page: str, kind: str = "") -> list[Block]:
    """The blocks of a page, of one kind or all."""
    found = [Block(one["kind"], one["mark"] or "", one["body"]) for one in _BLOCK.finditer(text(page))]
    return [block for block in found if not kind or block.kind == kind]


def files(page: str) -> dict[str, str]:
    """Name -> content of the files that a page asks its reader to save."""
    return {one.mark.partition(": ")[2]: one.body for one in blocks(page) if one.mark.startswith("file")}


def followed(page: str) -> list[str]:
    """The commands of a page that its reader types one after the other."""
    return [line for block in blocks(page, "sh") if block.mark == "run" for line in block.commands]


def parsed(line: str) -> Any:
    """The context of a `prunegpt` command.

    Raises:
        UsageError: there is no such command, or it does not take what it is given.
    """
    _, *arguments = words(line)
    calm = {"resilient_parsing": bool({*arguments} & _ACTS)}
    command = typer.main.get_command(app)
    context = command.make_context("prunegpt", list(arguments), **calm)
    while hasattr(command, "resolve_command") and not (calm["resilient_parsing"] and arguments[0].startswith("-")):
        name, command, arguments = command.resolve_command(context, list(arguments))
        context = command.make_context(name, list(arguments), parent=context, **calm)
    return context


def words(line: str) -> list[str]:
    """A command without the file that its output goes into."""
    return shlex.split(re.sub(r" > [\w.]+$", "", line), comments=True)


def links(page: str) -> Iterator[str]:
    """What the page links to, code left out."""
    bare = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text(page), flags=re.M | re.S)
    yield from re.findall(r"\]\(([^)\s]+)\)", bare)
