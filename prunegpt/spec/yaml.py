"""YAML that anybody may have written, read in one place and within one set of limits. Tags stay names and run nothing.

A text is composed to nodes, where an alias is the node that it names: what it stands for is counted before it is
expanded. `spec.read` and `recipes.source` make their data of the nodes, which know their lines.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 1_000_000
MAX_NODES = 200_000  # after aliases and merges are expanded
MAX_CHARACTERS = 10 * MAX_BYTES  # of all values, likewise
MAX_DEPTH = 50  # levels of nesting

CORE = "tag:yaml.org,2002:"
_MERGE = f"{CORE}merge"
_BRACKETS = re.compile(r"[\[\]{}]")
_MOST_BRACKETS = 20 * MAX_DEPTH  # also those in quotes count, so that there must be room
# What ruamel.yaml raises where a text is no YAML.
_NO_YAML = (YAMLError, ValueError, TypeError, AttributeError, IndexError, KeyError)


class NotYamlError(ValueError):
    """A text that is no YAML, with its line; `marked` where the reader of YAML said so itself."""

    def __init__(self, message: str, line: int | None = None, *, marked: bool = False) -> None:
        super().__init__(message)
        self.line, self.marked = line, marked


class TooMuchError(ValueError):
    """YAML that stands for more than anybody writes, with its line."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def text_of(path: Path, what: str) -> str:
    """The text of a file.

    Args:
        what: what messages call it, such as "a spec".

    Raises:
        ValueError: it is missing, too large, or not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{what} must be a readable file; {path}: {reason}.") from error
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{what} may have {MAX_BYTES} bytes; it has {len(raw)}.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} must be UTF-8; byte {error.start} is not. Save it as UTF-8.") from error


def compose(text: str, what: str) -> Node | None:
    """The node of a text, within the limits; None where it holds nothing.

    Args:
        what: what messages call it, such as "a spec".

    Raises:
        NotYamlError: it is no YAML.
        TooMuchError: it is nested too deep, or holds too many or too long values once its aliases are expanded.
    """
    too_deep = f"{what} may be nested {MAX_DEPTH} levels deep; it is nested deeper. Flatten it."
    if _is_hopeless(text):
        raise TooMuchError(too_deep)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # it is legal, and no news to the user
            root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise NotYamlError(
            f"{what} must be valid YAML: {error.problem or error.context}.", line, marked=True
        ) from error
    except RecursionError as error:
        raise TooMuchError(too_deep) from error
    except _NO_YAML as error:
        told = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise NotYamlError(f"{what} must be valid YAML: {told}.") from error
    if not isinstance(root, Node):
        return None
    many = f"{what} may hold {MAX_NODES} values after its aliases are expanded; it holds more."
    long = f"{what} may hold {MAX_CHARACTERS} characters after its aliases are expanded; it holds more."
    _Sizes(too_deep, many, long).of(root)
    return root


def _is_hopeless(text: str) -> bool:
    """Whether brackets are nested so deeply that a YAML reader would take hours to refuse them."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth = depth + 1 if found[0] in "[{" else max(depth - 1, 0)
        if depth > _MOST_BRACKETS:
            return True
    return text.count("- - - -") > _MOST_BRACKETS or text.count("? ? ? ?") > _MOST_BRACKETS


class _Sizes:
    """Counts what nodes stand for, each node once, however often it is named."""

    def __init__(self, too_deep: str, many: str, long: str) -> None:
        self._too_deep, self._many, self._long = too_deep, many, long
        self._known: dict[int, tuple[int, int, int] | None] = {}  # None while a node is being visited

    def of(self, node: Node) -> tuple[int, int, int]:
        """Values, characters and levels."""
        line = node.start_mark.line + 1
        if id(node) in self._known:
            known = self._known[id(node)]
            if known is None:
                raise TooMuchError(self._too_deep, line)  # an alias inside of what it names
            return known
        self._known[id(node)] = None
        inside = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
        scalar = isinstance(node, ScalarNode)
        sizes = [] if scalar else [self.of(part) for part in inside]
        values = 1 + sum(values for values, _, _ in sizes)
        characters = len(str(node.value)) if scalar else sum(characters for _, characters, _ in sizes)
        levels = 1 + max((level for _, _, level in sizes), default=0)
        if values > 2 * MAX_NODES:  # keys are counted, too
            raise TooMuchError(self._many, line)
        if characters > MAX_CHARACTERS:
            raise TooMuchError(self._long, line)
        if levels > MAX_DEPTH + 1:
            raise TooMuchError(self._too_deep, line)
        self._known[id(node)] = values, characters, levels
        return values, characters, levels


def built(root: Node | None, *, tags: bool = True) -> Any:
    """Dicts, lists and scalars of YAML 1.2, aliases and merges expanded; dates are text.

    Args:
        tags: pass over those that are not of YAML itself; otherwise they are refused.

    Raises:
        NotYamlError: a duplicate key, something is merged that is no mapping, or a value is not of its kind.
    """
    return None if root is None else Builder(tags=tags).build(root)


class Builder:
    """Makes data of nodes; see `built`."""

    def __init__(self, *, tags: bool = True) -> None:
        self._tags = tags
        made = YAML(typ="safe", pure=True).constructor
        self._scalars: Mapping[str, Callable[[Any], Any]] = {
            f"{CORE}null": made.construct_yaml_null,
            f"{CORE}bool": made.construct_yaml_bool,
            f"{CORE}int": made.construct_yaml_int,
            f"{CORE}float": made.construct_yaml_float,
        }

    def build(self, node: Node) -> Any:
        tag, line = str(node.tag or CORE), node.start_mark.line + 1
        if not self._tags and (not tag.startswith(CORE) or "python" in tag):
            raise NotYamlError(f"a tag must be of YAML itself, got {tag!r}.", line)
        if isinstance(node, MappingNode):
            return self.mapping(node)
        if isinstance(node, SequenceNode):
            return [self.build(item) for item in node.value]
        return self.scalar(node)

    def scalar(self, node: Node) -> Any:
        tag = str(node.tag or CORE)
        try:
            return self._scalars[tag](node) if tag in self._scalars else str(node.value)
        except _NO_YAML as error:
            message = f"a value must be valid YAML of its kind; {node.value[:80]!r} is not."
            raise NotYamlError(message, node.start_mark.line + 1) from error

    def mapping(self, node: MappingNode) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[Any] = []
        for key_node, value_node in node.value:
            if str(key_node.tag) == _MERGE:
                parts = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                merged += [self.build(part) for part in parts]
                continue
            name = str(key_node.value if isinstance(key_node, ScalarNode) else self.build(key_node))
            if name in found:
                message = f"keys must differ; {name[:80]!r} is there twice. Remove one."
                raise NotYamlError(message, key_node.start_mark.line + 1)
            found[name] = self.build(value_node)
        for other in merged:
            if not isinstance(other, dict):
                raise NotYamlError("<< must take a mapping; it takes something else.", node.start_mark.line + 1)
            for name, value in other.items():
                found.setdefault(name, value)
        return found


def line_in(root: Any, path: tuple[str | int, ...]) -> int | None:
    """The line, counted from 1, of the deepest part of a path that a node has."""
    node, line = root, None
    for step in path:
        if isinstance(node, MappingNode):
            inside = [(key, value) for key, value in node.value if _names(key, step)]
            if not inside:
                break
            line, node = inside[-1][0].start_mark.line + 1, inside[-1][1]
        elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _names(key: Node, step: str | int) -> bool:
    return isinstance(key, ScalarNode) and str(key.value) == str(step)
