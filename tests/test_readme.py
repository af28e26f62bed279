"""The README keeps its word: its commands exist and take what it gives them, its tables are what the records make."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from prunegpt.cli import app
from prunegpt.registry import RENDERERS
from prunegpt.report.archive import read_archive
from prunegpt.report.declared import tables_of
from prunegpt.report.regions import find_regions, replace_region

CHECKOUT = Path(__file__).resolve().parent.parent
README = CHECKOUT / "README.md"
ARCHIVES = sorted((CHECKOUT / "sweeps" / "results").glob("*/results.json"))
_BLOCK = re.compile(r"(<!-- test:readme -->\n)?```sh\n(.*?)```", re.DOTALL)
FOREIGN = ("wandb", "pip")  # commands of packages that we install
_MARKED = re.compile(r"#.*\bneeds?\b")


def blocks() -> list[tuple[bool, list[str]]]:
    """The shell blocks: whether a test runs them, and their commands with continued lines joined."""
    found = []
    for run, body in _BLOCK.findall(README.read_text(encoding="utf-8")):
        joined = body.replace("\\\n", " ")
        found.append((bool(run), [line for line in joined.splitlines() if line.strip()]))
    return found


COMMANDS = [line for _, lines in blocks() for line in lines if not line.startswith("#")]


def test_the_lists_are_not_empty() -> None:
    assert len(COMMANDS) >= 10
    assert ARCHIVES


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets
        return
    if words[0] in FOREIGN:
        assert shutil.which(words[0], path=Path(sys.executable).parent)
        return
    assert words[0] == "prunegpt"
    command, arguments = typer.main.get_command(app), words[1:]
    context = command.make_context("prunegpt", list(arguments))
    while hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(context, list(arguments))
        context = command.make_context(name, list(arguments), parent=context)
    assert context.params


@pytest.mark.parametrize(("run", "lines"), blocks())
def test_a_command_that_no_test_runs_says_what_it_needs(run: bool, lines: list[str]) -> None:
    if run or all(line.startswith("make ") for line in lines):
        return
    marked = lines[0].startswith("#") and _MARKED.search(lines[0])
    assert marked or all(_MARKED.search(line) for line in lines)


def test_tables_are_those_of_the_kept_records() -> None:
    render = RENDERERS.load("md")
    pages = [path.read_text(encoding="utf-8") for path in (README, *(CHECKOUT / "docs").glob("*.md"))]
    for found in (read_archive(path.parent) for path in ARCHIVES):
        holding = [text for text in pages if found.sweep in {region.name for region in find_regions(text)}]
        assert holding, found.sweep
        for text in holding:
            assert replace_region(text, found.sweep, render(tables_of(found))) == text


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path) -> None:
    (tmp_path / "sweeps").symlink_to(CHECKOUT / "sweeps")
    ran = [line for run, lines in blocks() if run for line in lines]
    assert ran
    for line in ran:
        words = shlex.split(line, comments=True)
        done = subprocess.run(
            [sys.executable, "-m", "prunegpt", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
