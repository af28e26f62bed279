"""Commands that are printed: they exist, and run on the root that they are printed about."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

import prunegpt
from prunegpt import cli
from prunegpt.cli import app
from prunegpt.cli.control import resume_command
from prunegpt.errors import StoreError
from prunegpt.root import ROOT_VARIABLE, Root
from prunegpt.spec.only import RunOptions
from prunegpt.web.endpoint import refusal
from tests.support.study import make_root

PACKAGE = Path(prunegpt.__file__).parent
TICKED = re.compile(r"`prunegpt (\w[^`]*)`")
HELP = ("epilog", "help")  # of typer: shown before there is a root


@cache
def commands() -> dict[str, Any]:
    """Every command by its words."""

    def below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if below_it := getattr(command, "commands", None):  # typer brings a click of its own
            for name, one in below_it.items():
                yield from below(one, (*words, name))
        else:
            yield " ".join(words), command

    return dict(below(typer.main.get_command(app), ()))


def takes_root() -> set[str]:
    return {name for name, one in commands().items() if any("--root" in option.opts for option in one.params)}


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The strings of a module, but for docstrings and the help of commands; what is filled in is X."""
    left = {
        id(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in HELP
    }
    left |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(one) for one in node.values}
            yield node.lineno, "".join(one.value if isinstance(one, ast.Constant) else "X" for one in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (left | parts):
            yield node.lineno, node.value


@cache
def printed() -> list[tuple[str, str]]:
    """The texts of the package, each with its file and line."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    return [(f"{path.relative_to(PACKAGE)}:{line}", text) for path, tree in trees.items() for line, text in texts(tree)]


def test_every_command_of_a_message_exists() -> None:
    found = [(where, command) for where, text in printed() for command in TICKED.findall(text)]
    assert len(found) > 20
    unknown = [one for one in found if not any(one[1].startswith(name) for name in commands())]
    assert unknown == []


def test_a_command_is_between_backticks_or_made_by_its_root() -> None:
    """Where it is, it gets its --root; anything else that looks like one would lack it."""
    bare = re.compile(rf"prunegpt ({'|'.join(commands())})\b")
    found = [(where, one) for where, text in printed() for one in bare.findall(TICKED.sub("", text))]
    assert [one for one in found if one[1] in takes_root()] == []


def test_what_goes_to_standard_output_names_the_root_itself() -> None:
    found = []
    for path in sorted((PACKAGE / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                found += [f"{path.name}:{line}" for line, text in texts(node) if TICKED.search(text)]
    assert found == []


def test_a_root_is_given_to_what_takes_one() -> None:
    root = Root(Path("/somewhere"))
    given = {name for name in commands() if "--root" in root.command(*name.split(), "X", always=True)}
    assert given == takes_root()
    assert root.command("sweep", "fields") == "prunegpt sweep fields"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("See `prunegpt sweep status`.", "See `prunegpt sweep status --root '/a b'`."),
        ("`prunegpt gc --root /x`", "`prunegpt gc --root /x`"),
        ("`prunegpt init shrink` or `sweep run`", "`prunegpt init shrink` or `sweep run`"),
        ("`prunegpt --help`", "`prunegpt --help`"),
    ],
)
def test_a_message_gets_the_root_where_it_is_another_one(
    text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Root(Path("/a b")).located(text) == expected
    monkeypatch.setenv(ROOT_VARIABLE, "/a b")
    assert Root(Path("/a b")).located(text) == text
    assert Root(Path("/a b")).command("sweep", "resume", "my sweep") == "prunegpt sweep resume 'my sweep'"


def test_errors_name_the_root_on_the_command_line_and_in_the_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_root(tmp_path / "runs", windows=False)
    told = f"`prunegpt sweep status study --root {root.path}` lists all"
    monkeypatch.setattr(sys, "argv", ["prunegpt", "trial", "show", "study/recovred", "--root", str(root.path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert told in capsys.readouterr().err
    answer = refusal(StoreError("`prunegpt sweep status study` lists all"), root)
    assert told in json.loads(bytes(answer.body))["error"]


def test_the_command_that_resumes_takes_no_more_than_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, "/r")
    root = Root(Path("/r"))
    assert resume_command("s", root, RunOptions()) == "prunegpt sweep resume s"
    told = resume_command("s", root, RunOptions(["a*", "b"], "slurm", 2))
    assert told == "prunegpt sweep resume s --only 'a*' --only b --launcher slurm --slots 2"
