"""Tables on a terminal of 80 columns, of every command that prints one: no header is cut, no line is too long."""

import ast
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

import prunegpt.cli
from prunegpt.cli import app, tables
from tests.support.small import Invoke
from tests.support.study import make_root, seeds

CLI = Path(prunegpt.cli.__file__).parent
SPEC = CLI.parents[1] / "sweeps" / "quickstart.yaml"

# How each command that prints a table is called; a reason in place of arguments where another one prints the same.
CALLS: Mapping[str, tuple[str, ...] | str] = {
    "table": ("study", "--format", "text"),
    "compare": ("study/recovered", "study/wanda-0.9", "--format", "text"),
    "doctor": ("--model", "builtin:tiny-gpt2"),
    "trial show": ("study/recovered",),
    "sweep check": (str(SPEC),),
    "sweep status": ("study",),
    "sweep fields": ("study",),
    "sweep watch": ("study", "--once"),
    "quickstart": "as table",
    "gc": "see test_gc.py",
    "reproduce": "see test_reproduce.py",
    "measure": "see test_speed.py",
    "eval": "scores of tasks, see test_models.py",
    "sweep run": "as table",
    "sweep resume": "as table",
    "prune": "sparsities, as trial show",
    "shrink": "what could go, see test_models.py",
    "masks check": "sparsities, as trial show",
}


def registered(group: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command with its words and its function."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from registered(command, (*words, name))
        else:
            yield " ".join((*words, name)), command.callback


def calls() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """Function of the command line -> those of it that it calls, each with its module."""
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for file in CLI.glob("*.py"):
        tree, module = ast.parse(file.read_text(encoding="utf-8")), f"prunegpt.cli.{file.stem}"
        names = {
            alias.asname or alias.name: (node.module or "", alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        names |= {function.name: (module, function.name) for function in functions}
        for function in functions:
            used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
            found.setdefault((module, function.name), set()).update(names[name] for name in used if name in names)
    return found


def test_every_command_that_prints_a_table_is_called() -> None:
    edges, printing = calls(), {("prunegpt.cli.tables", "build")}
    while more := {name for name, used in edges.items() if used & printing} - printing:
        printing |= more
    found = {words for words, function in registered() if (function.__module__, function.__name__) in printing}
    assert found == set(CALLS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("made") / "runs").path


@pytest.mark.parametrize("words", [words for words, arguments in CALLS.items() if not isinstance(arguments, str)])
def test_no_header_is_cut_at_80_columns(words: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(columns: Any, rows: Any, limit: int, **more: Any) -> Any:
        group = real(columns, rows, limit, **more)
        built.append((columns, limit, group))
        return group

    real = tables.build
    monkeypatch.setattr(tables, "build", build)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PRUNEGPT_ROOT", str(made))
    result = CliRunner().invoke(app, [*words.split(), *CALLS[words]])
    assert result.exit_code == 0, result.output
    assert built
    for columns, limit, group in built:
        assert limit == 80
        check(columns, shown(group, limit), limit)


def shown(group: Any, limit: int) -> str:
    file = io.StringIO()
    Console(file=file, width=limit).print(group)
    return file.getvalue()


def check(columns: list[str], text: str, limit: int) -> None:
    lines = text.splitlines()
    assert all(len(line) <= limit for line in lines), text
    (rule,) = [index for index, line in enumerate(lines) if line and set(line.rstrip()) == {"─"}]
    *_, left_out = " ".join(text.split()).partition(f"not shown in {limit} columns: ")
    named = left_out.split(", ")
    assert all(name in lines[rule - 1] or name in named for name in columns), text


@pytest.mark.parametrize("limit", [24, 40, 60, 80, 200])
def test_what_is_narrow_loses_columns_and_no_number(limit: int) -> None:
    columns = ["trial", "key", "perplexity", "tokens trained", "note"]
    rows = [
        [f"magnitude-0.{row}-distilled", "0123456789abcdef01234567", f"{row}2.5", "1,409,600", "[red]long [a, b] " * 5]
        for row in range(3)
    ]
    text = shown(tables.build(columns, rows, limit, spare=("key", "tokens trained"), title="T"), limit)
    check(columns, text, limit)
    assert ("not shown" in text) is (limit < 80)
    assert ("12.5" in text) is (limit >= 40)
    assert ("[red]long [a, b]" in text) is (limit >= 60)


@pytest.mark.parametrize("limit", [24, 60, 200])
def test_rows_that_need_no_folding_look_as_others_do(limit: int) -> None:
    columns = ["trial", "share", "waits for"]
    rows = [["a [red]b", "12.5", "日本"], ["", "–", "long words " * (limit < 60)], ["c", "1,000", ""]]
    as_text = [[Text(cell) for cell in row] for row in rows]
    plain, folded = (tables.build(columns, cells, limit, title="T") for cells in (rows, as_text))
    assert shown(plain, limit) == shown(folded, limit)


def test_what_is_piped_is_markdown_and_not_limited(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("PRUNEGPT_ROOT", str(made))
    run = CliRunner()
    assert "| Model |" in run.invoke(app, ["table", "study"]).stdout
    assert run.invoke(app, ["table", "study", "-f", "markdown"]).stdout == run.invoke(app, ["table", "study"]).stdout
    assert r"\toprule" in run.invoke(app, ["compare", "study/recovered", "study/finetuned", "-f", "latex"]).stdout
    assert "not shown" not in run.invoke(app, ["trial", "show", "study/recovered"]).stdout
    assert "unknown table format 'latx'" in str(run.invoke(app, ["table", "study", "-f", "latx"]).exception)


def test_a_group_stands_for_its_seeds(invoke: Invoke, tmp_path: Path) -> None:
    make_root(tmp_path / "runs", seeds(), name="study")
    shown = invoke("trial", "show", "study/wanda-0.9")
    assert "study/wanda-0.9: 3 seeds" in shown
    assert "Student's t over seeds, n = 3)" in shown
    found = json.loads(invoke("trial", "show", "study/wanda-0.9", "--json"))
    assert found["perplexity"]["seeds"] == len(found["trials"]) == 3
    assert found["perplexity"]["low"] < found["perplexity"]["mean"] < found["perplexity"]["high"]
    compared = json.loads(invoke("compare", "study/wanda-0.9", "study/magnitude-0.9", "--json"))
    assert "study/wanda-0.9 (3 seeds) and study/magnitude-0.9 (3 seeds) differ" in compared["verdict"]
    assert compared["metrics"][0]["first"] == pytest.approx(found["perplexity"]["mean"])
    assert "(3 seeds)" in invoke("compare", "study/wanda-0.9", "study/magnitude-0.9-seed1", "-f", "text")
    message = "unknown trial or group of study 'wanda-0.8'. Did you mean 'wanda-0."
    assert message in invoke("trial", "show", "study/wanda-0.8", fails=True)


def test_one_table_is_printed_for_a_paper(invoke: Invoke, tmp_path: Path) -> None:
    make_root(tmp_path / "runs")
    paper = ("table", "study", "--format", "latex", "--table", "one-layer-at-80", "--decimals", "1")
    text = invoke(*paper, "--caption", "Layers.", "--no-provenance")
    assert text.count(r"\begin{table}") == 1
    assert r"\caption{Layers.}" in text
    assert "60.5 [54.8, 66.7]" in text
    assert "torch" not in text
    assert "torch" in invoke(*paper)
    message = "unknown table of study 'layers'. Valid: one-layer-at-80, pruning-and-distillation"
    assert message in invoke("table", "study", "-t", "layers", fails=True)
    assert "a caption is of one table; study has " in invoke("table", "study", "--caption", "x", fails=True)
