"""The YAML of a recipe as plain data with line numbers. Tags stay names: nothing is ever built from them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from prunegpt.errors import Problem, SpecError, listed, nearest
from prunegpt.spec.yaml import CORE, MAX_BYTES, Builder, NotYamlError, TooMuchError, compose, text_of

_KINDS = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"}
_ITEM = re.compile(r"^( *)- +!([\w.]+)")
_LIST = re.compile(r"^ *\w*modifiers:\s*(#.*)?$")
_FENCE = re.compile(r"^(---|\+\+\+)\s*$", re.MULTILINE)


class RecipeError(SpecError):
    """A recipe that cannot be read or does not mean anything here. All its problems are reported at once."""


class Map(dict[str, Any]):
    """A mapping, with the line of each key; `tag` is `GMPruningModifier` of `!GMPruningModifier`."""

    def __init__(self, items: Mapping[str, Any], node: MappingNode, tag: str | None) -> None:
        super().__init__(items)
        self.line, self.tag = node.start_mark.line + 1, tag
        own = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
        self.lines = {name: own.get(name, self.line) for name in items}  # the others are merged


class Seq(list[Any]):
    """A list. A plain value with a tag is a list of it, or of nothing where it is empty."""

    def __init__(self, items: Iterable[Any], node: Node, tag: str | None) -> None:
        super().__init__(items)
        self.line, self.tag = node.start_mark.line + 1, tag


def line_of(value: Any, default: int) -> int:
    """Where a mapping or list begins; plain values do not know."""
    return int(getattr(value, "line", default))


def tag_of(value: Any) -> str | None:
    """The tag of a mapping or list."""
    tag: str | None = getattr(value, "tag", None)
    return tag


def tags(value: Any) -> Iterator[str]:
    """All tags in parsed data."""
    if (tag := tag_of(value)) is not None:
        yield tag
    for part in value.values() if isinstance(value, Map) else value if isinstance(value, Seq) else ():
        yield from tags(part)


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        RecipeError: a `zoo:` stub, or a file that is missing, too large or not UTF-8.
    """
    source = str(path)
    if source.startswith("zoo:"):
        raise _error(
            "a recipe must be a file; zoo: names one in the SparseZoo, which no longer exists. Give the path of a "
            "copy.",
            source,
        )
    try:
        return text_of(path, "a recipe")
    except ValueError as error:
        raise _error(str(error), source) from error


def _error(message: str, source: str, line: int | None = None) -> RecipeError:
    return RecipeError([Problem("", message, line)], source)


def parse(text: str, source: str = "the recipe", overrides: Mapping[str, Any] | None = None) -> Any:
    """A recipe's YAML, or the front matter of its Markdown: plain values, :class:`Map` and :class:`Seq`.

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
        raise _error(f"a recipe may have {MAX_BYTES} bytes; it has {len(text)}.", source)
    root = nodes(text, source)
    variables = list(_variables(root, 0))
    known = {name for name, _ in variables}
    problems = [
        Problem(
            name,
            f"an override must name a variable of the recipe; {name!r} is none. There are: "
            f"{listed(nearest(name, known))}.",
        )
        for name in (overrides or {}).keys() - known
    ]
    if problems:
        raise RecipeError(problems, source)
    try:
        return _Builder(
            {id(node): overrides[name] for name, node in variables if overrides and name in overrides}
        ).build(root)
    except NotYamlError as error:
        raise _error(str(error), source, error.line) from error


def front_matter(text: str, *, required: bool, source: str) -> str:
    """The YAML between two fences, with empty lines before it so that line numbers stay; the text itself without them.

    Raises:
        RecipeError: `required`, and there is none.
    """
    for opening, closing in pairwise(_FENCE.finditer(text)):
        between = text[opening.end() : closing.start()]
        if opening[1] == closing[1] and between.strip():
            return "\n" * text.count("\n", 0, opening.end()) + between
    if required:
        message = "a Markdown recipe must hold YAML between two lines of ---; it has none. Add the lines."
        raise _error(message, source)
    return text


def nodes(text: str, source: str) -> Node:
    """The nodes of a recipe, or of the front matter of its Markdown.

    Raises:
        RecipeError: it is no YAML, holds nothing, or too much.
    """
    text = front_matter(text, required=source.lower().endswith(".md"), source=source)
    try:
        root = compose(text, "a recipe")
    except NotYamlError as error:
        fixed, problem = suggest(text) if error.marked else (text, None)
        if problem is None or not is_valid(fixed):
            problem = Problem("", str(error), error.line)
        raise RecipeError([problem], source) from error
    except TooMuchError as error:
        raise _error(str(error), source, error.line) from error
    if root is None:
        raise _error("a recipe must hold modifiers or sections; the file holds nothing.", source)
    return root


def is_valid(text: str) -> bool:
    """Whether a text is YAML."""
    try:
        return compose(text, "a recipe") is not None
    except ValueError:
        return False


def suggest(text: str) -> tuple[str, Problem | None]:
    """The commonest broken recipe, a `- !Modifier` indented under the one before it: the text repaired, what to change.

    Every such item is moved to the leftmost column of its list.

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
    moved: list[tuple[int, str]] = []
    for items in lists:
        column = min((indent for _, indent, _ in items), default=0)
        above = ""
        for index, indent, modifier in items:
            if indent > column:
                inside = f", so that it is nested in !{above}" if above else ""
                message = (
                    f"the items of a list must begin in one column; `- !{modifier}` begins after {indent} spaces and "
                    f"others after {column}{inside}. Remove {indent - column} spaces before its dash."
                )
                moved.append((index + 1, message))
                lines[index] = lines[index][indent - column :]
            above = modifier
    if not moved:
        return text, None
    (first, message), *others = moved
    more = f" The same holds for line {', '.join(str(line) for line, _ in others)}." if others else ""
    return "\n".join(lines), Problem("", message + more, first)


class _Builder(Builder):
    """Makes maps and lists that know their tags.

    Args:
        replaced: identity of a node -> the value that an override gives it; an alias is the same node.
    """

    def __init__(self, replaced: Mapping[int, Any]) -> None:
        super().__init__()
        self._replaced = replaced

    def build(self, node: Node) -> Any:
        if id(node) in self._replaced:
            return self._replaced[id(node)]
        line, name = node.start_mark.line + 1, str(node.tag or "")
        known = name.startswith(CORE) and name.removeprefix(CORE) in _KINDS
        if not known and not re.fullmatch(r"!(\w+\.)*[A-Za-z_]\w*", name):
            message = f"a tag must name a modifier, such as !GMPruningModifier, got {name!r}. Nothing is built from it."
            raise NotYamlError(message, line)
        tag = None if known else name[1:]
        if isinstance(node, MappingNode):
            for key, _ in node.value:
                if not isinstance(key, ScalarNode):
                    raise NotYamlError("a key must be a plain value; it is a list or mapping.", line)
                self.scalar(key)
            return Map(self.mapping(node), node, tag)
        if isinstance(node, SequenceNode):
            return Seq([self.build(item) for item in node.value], node, tag)
        return self.scalar(node) if tag is None else Seq([node.value] if node.value else [], node, tag)

    def scalar(self, node: Node) -> Any:
        value, line = super().scalar(node), node.start_mark.line + 1
        if isinstance(value, int) and abs(value) >= 2**63:
            raise NotYamlError("a whole number may have 63 bits; it has more.", line)
        if isinstance(value, str) and any(0xD800 <= ord(letter) <= 0xDFFF for letter in value):
            raise NotYamlError("a text must be Unicode; it holds half a surrogate pair.", line)
        return value


def _variables(node: Node, depth: int) -> Iterator[tuple[str, Node]]:
    """The variables of a recipe, of its stages and of `args`: whatever is neither modifiers nor a mapping."""
    if not isinstance(node, MappingNode) or str(node.tag) != f"{CORE}map":
        return
    for key, value in node.value:
        if not isinstance(key, ScalarNode) or "modifiers" in str(key.value):
            continue
        if not isinstance(value, MappingNode):
            yield str(key.value), value
        elif depth < 2:
            yield from _variables(value, depth + 1)
