"""The YAML of a recipe as a tree with line numbers. Tags stay names: nothing is ever built from them."""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from prunegpt.errors import Problem, SpecError
from prunegpt.recipes.repair import repaired
from prunegpt.spec.read import is_hopeless

MAX_BYTES = 256_000
MAX_NODES = 50_000  # after aliases are expanded
MAX_DEPTH = 40

_CORE = "tag:yaml.org,2002:"
_FENCE = re.compile(r"^(---|\+\+\+)\s*$", re.MULTILINE)


class RecipeError(SpecError):
    """A recipe that cannot be read or does not mean anything here. All its problems are reported at once."""


@dataclass(frozen=True)
class Scalar:
    """A plain value."""

    value: bool | int | float | str | None
    line: int
    tag: str | None = None  # `GMPruningModifier` of `!GMPruningModifier`


@dataclass(frozen=True)
class Items:
    """A list."""

    items: tuple["Tree", ...]
    line: int
    tag: str | None = None


@dataclass(frozen=True)
class Fields:
    """A mapping, with the line of each key."""

    entries: tuple[tuple[str, int, "Tree"], ...]
    line: int
    tag: str | None = None

    @cached_property
    def by_name(self) -> Mapping[str, "Tree"]:
        return {name: tree for name, _, tree in self.entries}

    @cached_property
    def lines(self) -> Mapping[str, int]:
        return {name: line for name, line, _ in self.entries}


Tree = Scalar | Items | Fields


def plain(tree: Tree) -> Any:
    """The data of a tree, without lines and tags."""
    if isinstance(tree, Scalar):
        return tree.value
    if isinstance(tree, Items):
        return [plain(item) for item in tree.items]
    return {name: plain(value) for name, _, value in tree.entries}


def tags(tree: Tree) -> Iterator[str]:
    """All tags in a tree."""
    if tree.tag is not None:
        yield tree.tag
    below: tuple[Tree, ...] = ()
    if isinstance(tree, Items):
        below = tree.items
    elif isinstance(tree, Fields):
        below = tuple(value for _, _, value in tree.entries)
    for part in below:
        yield from tags(part)


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        RecipeError: a `zoo:` stub, or a file that is missing, too large or not UTF-8.
    """
    source = str(path)
    if source.startswith("zoo:"):
        raise RecipeError(
            [
                Problem(
                    "",
                    "a recipe must be a file, but zoo: names one in the SparseZoo, which no longer exists. "
                    "Give the path of a copy.",
                )
            ],
            source,
        )
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            [Problem("", f"a recipe must be a readable file, but {source!r}: {reason}.")], source
        ) from error
    if len(raw) > MAX_BYTES:
        raise RecipeError([Problem("", f"a recipe may have {MAX_BYTES} bytes, but has {len(raw)}.")], source)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"a recipe must be UTF-8, but byte {error.start} is not. Save it as UTF-8."
        raise RecipeError([Problem("", message)], source) from error


def parse(text: str, source: str = "the recipe", overrides: Mapping[str, Any] | None = None) -> Tree:
    """A recipe's YAML, or the front matter of its Markdown, as a tree.

    Args:
        text: YAML, JSON, or Markdown with YAML between two lines of `---` or `+++`.
        source: names the recipe in errors.
        overrides: variable -> value; replaces variables of the recipe and of its stages, and what `*aliases` take
            from them.

    Raises:
        RecipeError: not YAML, an unsafe tag, a key twice, too large, or an override of a variable that is not there.
    """
    if text.lstrip().startswith("zoo:"):
        read_text(Path(text.strip().splitlines()[0]))
    if len(text) > MAX_BYTES:
        raise RecipeError([Problem("", f"a recipe may have {MAX_BYTES} bytes, but has {len(text)}.")], source)
    matter = front_matter(text, required=source.lower().endswith(".md"), source=source)
    root = _compose(matter, source)
    problems: list[Problem] = []
    builder = _Builder(problems, _replacements(root, overrides or {}, problems))
    tree = builder.tree(root, 0)
    if problems:
        raise RecipeError(problems, source)
    return tree


def front_matter(text: str, *, required: bool, source: str) -> str:
    """The YAML between two fences, with empty lines before it so that line numbers stay; the text itself without them.

    Raises:
        RecipeError: `required`, and there is none.
    """
    fences = list(_FENCE.finditer(text))
    for opening, closing in pairwise(fences):
        between = text[opening.end() : closing.start()]
        if opening[1] == closing[1] and between.strip():
            return "\n" * text.count("\n", 0, opening.end()) + between
    if required:
        message = "a Markdown recipe must hold YAML between two lines of ---, but has none. Add the lines."
        raise RecipeError([Problem("", message)], source)
    return text


def _root(text: str) -> Any:
    """The node of a text. An anchor defined twice is legal, and no news to the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReusedAnchorWarning)
        return YAML(typ="safe", pure=True).compose(text)


def _compose(text: str, source: str) -> Node:
    if is_hopeless(text):
        raise RecipeError([Problem("", f"a recipe may nest {MAX_DEPTH} deep, but nests deeper.")], source)
    try:
        root = _root(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        problem = Problem("", f"a recipe must be valid YAML: {error.problem or error.context}.", line)
        raise RecipeError([repaired(text, is_valid) or problem], source) from error
    except RecursionError as error:
        raise RecipeError([Problem("", f"a recipe may nest {MAX_DEPTH} deep, but nests deeper.")], source) from error
    except (YAMLError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RecipeError([Problem("", f"a recipe must be valid YAML: {reason}.")], source) from error
    if not isinstance(root, Node):
        raise RecipeError(
            [Problem("", "a recipe must hold modifiers or sections, but the file holds nothing.")], source
        )
    return root


def is_valid(text: str) -> bool:
    """Whether a text is YAML."""
    try:
        return isinstance(_root(text), Node)
    except (YAMLError, ValueError, TypeError, AttributeError, IndexError, KeyError, RecursionError):
        return False


class _Builder:
    """Makes trees of nodes and counts them, so that aliases cannot multiply."""

    def __init__(self, problems: list[Problem], replaced: Mapping[int, Any]) -> None:
        self.problems = problems
        self._replaced = replaced
        self._count = 0

    def tree(self, node: Node, depth: int) -> Tree:
        line = node.start_mark.line + 1
        if id(node) in self._replaced:
            return _given(self._replaced[id(node)], line)
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH:
            if not any("aliases" in problem.message for problem in self.problems):
                message = (
                    f"a recipe may hold {MAX_NODES} values nested {MAX_DEPTH} deep after its aliases are expanded, "
                    f"but holds more."
                )
                self.problems.append(Problem("", message, line))
            return Scalar(None, line)
        tag = self._tag(node, line)
        if isinstance(node, MappingNode):
            return Fields(tuple(self._entries(node, depth)), line, tag)
        if not isinstance(node, ScalarNode):
            return Items(tuple(self.tree(item, depth + 1) for item in node.value), line, tag)
        return Scalar(None if tag is not None and node.value == "" else self._value(node, line), line, tag)

    def _tag(self, node: Node, line: int) -> str | None:
        name = str(node.tag or "")
        if name.startswith(_CORE):
            kind = name.removeprefix(_CORE)
            if kind in {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"}:
                return None
        elif re.fullmatch(r"!(\w+\.)*[A-Za-z_]\w*", name):
            return name[1:]
        message = f"a tag must name a modifier, such as !GMPruningModifier, but got {name!r}. Nothing is built from it."
        self.problems.append(Problem("", message, line))
        return None

    def _entries(self, node: MappingNode, depth: int) -> Iterator[tuple[str, int, Tree]]:
        found: dict[str, tuple[int, Tree]] = {}
        merged: dict[str, tuple[int, Tree]] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if str(key_node.tag) == f"{_CORE}merge":
                for name, at, tree in self._merged(value_node, depth):
                    merged.setdefault(name, (at, tree))
                continue
            if not isinstance(key_node, ScalarNode):
                self.problems.append(Problem("", "a key must be a plain value, but is a list or mapping.", line))
                continue
            name = self._text(str(key_node.value), line)
            if name in found:
                message = f"a key must stand once in a mapping, but {name!r} stands in line {found[name][0]} as well."
                self.problems.append(Problem("", message, line))
                continue
            found[name] = (line, self.tree(value_node, depth + 1))
        for name, (line, tree) in {**merged, **found}.items():
            yield name, line, tree

    def _merged(self, node: Node, depth: int) -> Iterator[tuple[str, int, Tree]]:
        parts = node.value if isinstance(node, SequenceNode) else [node]
        for part in parts:
            tree = self.tree(part, depth + 1)
            if isinstance(tree, Fields):
                yield from tree.entries
            else:
                self.problems.append(Problem("", "<< must take a mapping, but takes something else.", tree.line))

    def _value(self, node: ScalarNode, line: int) -> bool | int | float | str | None:
        text = str(node.value)
        kind = str(node.tag).removeprefix(_CORE)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() == "true"
            if kind == "int":
                number = int(text.replace("_", ""), 0 if re.match(r"[-+]?0[xob]", text) else 10)
                if abs(number) < 2**63:
                    return number
                self.problems.append(Problem("", "a whole number may have 63 bits, but has more.", line))
                return 0
            if kind == "float":
                return float(re.sub(r"\.(inf|nan)$", r"\1", text.replace("_", ""), flags=re.IGNORECASE))
        except ValueError:
            self.problems.append(Problem("", f"a value must be what its tag says, but {text!r} is no {kind}.", line))
        return self._text(text, line)

    def _text(self, text: str, line: int) -> str:
        if not text.isprintable() and any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
            self.problems.append(Problem("", "a text must be Unicode, but holds half a surrogate pair.", line))
            return ""
        return text


def _replacements(root: Node, overrides: Mapping[str, Any], problems: list[Problem]) -> dict[int, Any]:
    """The identity of each node that an override replaces -> the new value; an alias is the same node."""
    tables = list(_variable_tables(root, 0))
    names = sorted({str(key.value) for table in tables for key, _ in table})
    for name in overrides:
        if name not in names:
            listed = ", ".join(names) or "none"
            message = f"an override must name a variable of the recipe, but {name!r} is none. There are: {listed}."
            problems.append(Problem(name, message))
    return {
        id(node): overrides[str(key.value)] for table in tables for key, node in table if str(key.value) in overrides
    }


def _variable_tables(node: Node, depth: int) -> Iterator[list[tuple[ScalarNode, Node]]]:
    """The variables of a recipe, of its stages and of `args`: whatever is neither modifiers nor a mapping."""
    if not isinstance(node, MappingNode) or str(node.tag) != f"{_CORE}map":
        return
    table = []
    for key, value in node.value:
        if not isinstance(key, ScalarNode) or "modifiers" in str(key.value):
            continue
        if isinstance(value, MappingNode) and depth < 2:
            yield from _variable_tables(value, depth + 1)
        elif not isinstance(value, MappingNode):
            table.append((key, value))
    yield table


def _given(value: Any, line: int) -> Tree:
    """A value from the command line as a tree."""
    if isinstance(value, (list, tuple)):
        return Items(tuple(_given(item, line) for item in value), line)
    return Scalar(value if value is None or isinstance(value, (bool, int, float)) else str(value), line)
