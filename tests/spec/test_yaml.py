"""One way to read YAML: whatever takes it refuses what would grow, within bounds of time and memory."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import prunegpt
from prunegpt.errors import PruneGPTError
from prunegpt.recipes.load import parse_overrides
from prunegpt.recipes.source import parse
from prunegpt.spec.read import bounded_value, parse_document, parse_value
from prunegpt.spec.yaml import built, compose

LEVELS, WIDTH = 30, 10  # WIDTH ** LEVELS values


def levels(first: str, next_: Callable[[str], str]) -> str:
    lines = [f"l0: &l0 {first}"]
    lines += [f"l{level}: &l{level} {next_(f'*l{level - 1}')}" for level in range(1, LEVELS)]
    return "\n".join(lines) + "\n"


BOMBS = {
    "aliases": levels("[x]", lambda alias: f"[{', '.join([alias] * WIDTH)}]"),
    "aliases in mappings": levels("{a: 1}", lambda alias: f"{{{', '.join(f'k{i}: {alias}' for i in range(WIDTH))}}}"),
    "merges": levels("{a: 1}", lambda alias: f"{{<<: [{', '.join([alias] * WIDTH)}]}}"),
    "merges beside aliases": levels("{a: 1}", lambda alias: f"{{<<: {alias}, k: {alias}}}"),
    "one mapping merged everywhere": "".join(
        [f"a: &a {{{', '.join(f'k{i}: 1' for i in range(700))}}}\n", *(f"m{i}: {{<<: *a}}\n" for i in range(700))]
    ),
    "one long text everywhere": f"a: &a {'x' * 300_000}\nb: [{', '.join(['*a'] * 50)}]\n",
    "one long key everywhere": f"a: &a {'x' * 300_000}\nb: [{', '.join(['{*a : 1}'] * 50)}]\n",
    "a chain of aliases": "l0: &l0 [x]\n" + "".join(f"l{i}: &l{i} [*l{i - 1}]\n" for i in range(1, 2000)),
    "itself": "a: &a [*a]",
    "merged into itself": "a: &a {<<: *a}",
}
READERS: dict[str, Callable[[str], object]] = {
    "spec": lambda text: parse_document(text, "spec.yaml"),
    "--set": parse_value,
    "W&B": bounded_value,
    "recipe": parse,
    "recipe in Markdown": lambda text: parse(f"---\n{text}\n---\n", "recipe.md"),
    "--set of a recipe": lambda text: parse_overrides([f"x={text}"]),
}


def refusals(reader: str) -> dict[str, str]:
    """Bomb -> what a reader says of it."""
    found = {}
    for name, bomb in BOMBS.items():
        try:
            READERS[reader](bomb)
            found[name] = "read"
        except (ValueError, PruneGPTError) as error:
            found[name] = str(error)
    return found


@pytest.mark.parametrize("reader", READERS)
def test_what_would_grow_is_refused_everywhere(reader: str) -> None:
    code = (
        f"import json, resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2); "
        f"resource.setrlimit(resource.RLIMIT_CPU, (60, 60)); "
        f"from tests.spec.test_yaml import refusals; print(json.dumps(refusals({reader!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told) == set(BOMBS)
    for bomb, message in told.items():
        assert re.search("levels deep; it is nested deeper|after its aliases are expanded", message), bomb


def test_honest_aliases_and_merges_are_read_by_all() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 3}\nc: *a\n"
    expected = {"a": {"x": 1, "y": [1, 2]}, "b": {"x": 3, "y": [1, 2]}, "c": {"x": 1, "y": [1, 2]}}
    assert parse_document(text, "s").data == parse_value(text) == bounded_value(text) == parse(text) == expected


def test_an_earlier_mapping_wins_where_several_are_merged() -> None:
    text = "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b], z: 3}\n"
    assert built(compose(text, "a text"))["c"] == {"z": 3, "x": 1, "y": 2}


def test_yaml_is_read_in_one_place() -> None:
    """Elsewhere it may be written, and its nodes looked at."""
    package = Path(prunegpt.__file__).parent
    readers = set()
    for file in package.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in imported for alias in node.names} | {
            str(node.module) for node in imported if isinstance(node, ast.ImportFrom)
        }
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if names & {"YAML", "yaml", "ruamel.yaml"} and attributes & {"load", "load_all", "safe_load", "compose"}:
            readers.add(file.relative_to(package).as_posix())
    assert readers == {"spec/yaml.py"}
