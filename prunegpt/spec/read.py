"""A spec file becomes plain data that remembers its lines. `--set` is applied here."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from prunegpt.errors import Problem, SpecError
from prunegpt.spec.paths import set_path as set_path
from prunegpt.spec.wandb import Converted, Place, is_sweep, to_spec

MAX_BYTES = 1_000_000
MAX_NODES = 200_000  # after aliases are expanded
MAX_DEPTH = 50  # levels of nesting
MAX_INTEGER = 2**63 - 1  # what every reader of JSON and every database column takes

_SHOWN = 80  # characters of a value in a message
_BRACKETS = re.compile(r"[\[\]{}]")
_MOST_BRACKETS = 20 * MAX_DEPTH  # also those in quotes count, so that there must be room
_KINDS = {CommentedSeq: "a list", str: "plain text", bool: "a truth value", int: "a number", float: "a number"}

_TOO_DEEP = f"a spec may be nested {MAX_DEPTH} levels deep, but is nested deeper. Flatten it."


@dataclass(frozen=True)
class Document:
    """A parsed spec: the plain data, and where it came from."""

    data: dict[str, Any]
    marked: Any  # the same with line numbers, as ruamel.yaml read it
    source: str
    places: Mapping[Place, Place] = field(default_factory=dict)  # path -> where the file says it, if elsewhere

    def line(self, path: Sequence[str | int]) -> int | None:
        """The line, counted from 1, of the deepest part of the path that the file has."""
        node, line = self.marked, None
        for step in self._written(tuple(path)):
            try:
                if isinstance(node, CommentedMap):
                    line = node.lc.key(step)[0] + 1
                elif isinstance(node, CommentedSeq):
                    line = node.lc.item(step)[0] + 1
                else:
                    break
                node = node[step]
            except (KeyError, IndexError, TypeError, AttributeError):
                break
        return line

    def _written(self, path: Place) -> Place:
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return (*self.places[path[:length]], *path[length:])
        return path

    def problem(self, path: Sequence[str | int], message: str) -> Problem:
        return Problem(".".join(str(step) for step in path), message, self.line(path))


def read_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Reads a YAML file and applies `PATH=VALUE` overrides.

    Raises:
        SpecError: the file is missing, too large, not UTF-8, not YAML, or no mapping; or an override has no such place.
    """
    source = str(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SpecError(
            [Problem("", f"a spec must be a readable file, but {path}: {error.strerror}.")], source
        ) from error
    if len(raw) > MAX_BYTES:
        raise SpecError([Problem("", f"a spec may have {MAX_BYTES} bytes, but has {len(raw)}.")], source)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(
            [Problem("", f"a spec must be UTF-8, but byte {error.start} is not. Save it as UTF-8.")], source
        ) from error
    return parse_document(text, source, overrides)


def parse_document(text: str, source: str, overrides: Sequence[str] = ()) -> Document:
    """As read_document, from text."""
    if is_hopeless(text):
        raise SpecError([Problem("", _TOO_DEEP)], source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # it is legal, and no news to the user
            marked = YAML(typ="rt").load(io.StringIO(text))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        message = f"a spec must be valid YAML: {error.problem or error.context}."
        raise SpecError([Problem("", message, line)], source) from error
    except RecursionError as error:
        raise SpecError([Problem("", _TOO_DEEP)], source) from error
    except (YAMLError, ValueError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise SpecError([Problem("", f"a spec must be valid YAML: {told}.")], source) from error
    if not isinstance(marked, CommentedMap):
        kind = "nothing" if marked is None else next((_KINDS[k] for k in _KINDS if isinstance(marked, k)), "no mapping")
        raise SpecError(
            [Problem("", f"a spec must be a mapping with name, base and trials, but the file holds {kind}.")], source
        )
    return _document(marked, source, overrides)


def is_hopeless(text: str) -> bool:
    """Whether a text opens so many brackets, one in another, that a YAML reader would take hours to refuse it."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth = depth + 1 if found[0] in "[{" else max(depth - 1, 0)
        if depth > _MOST_BRACKETS:
            return True
    return text.count("- - - -") > _MOST_BRACKETS or text.count("? ? ? ?") > _MOST_BRACKETS


def plain_document(data: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Document:
    """As read_document, from plain data that has no lines."""
    return _document(data, source, overrides)


def _document(marked: Any, source: str, overrides: Sequence[str]) -> Document:
    document = Document({}, marked, source)
    reader = _Plain(document)
    data = reader.read(marked, ())
    problems = list(reader.problems)
    places: Mapping[Place, Place] = {}
    if is_sweep(data):
        converted = _converted(data, source)
        problems += [document.problem(place, message) for place, message in converted.problems]
        data, places = converted.spec, converted.places
    for override in overrides:
        try:
            apply_override(data, override)
        except ValueError as error:
            problems.append(Problem("", f"--set {override[:_SHOWN]}: {error}"))
    if problems:
        raise SpecError(problems, source)
    return Document(data, marked, source, places)


def _converted(data: Mapping[str, Any], source: str) -> Converted:
    """The spec that a W&B sweep config means; a `program` is looked for beside it."""

    def read(program: str) -> Mapping[str, Any]:
        path = Path(source).parent / program
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise SpecError([Problem("program", "program must name another file, but names this one.")], source)
        return read_document(path).data

    return to_spec(data, Path(source).stem, read)


class _Plain:
    """Makes plain dicts, lists and scalars of what a YAML reader gives, and notes what a spec may not hold."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self._count = 0

    def read(self, node: Any, path: tuple[str | int, ...]) -> Any:
        self._count += 1
        if self._count > MAX_NODES or len(path) > MAX_DEPTH:
            many = f"a spec may hold {MAX_NODES} values after its aliases are expanded, but holds more."
            message = many if self._count > MAX_NODES else _TOO_DEEP
            raise SpecError([self.document.problem(path[:1], message)], self.document.source)
        if isinstance(node, Mapping):
            return self._mapping(node, path)
        if isinstance(node, (list, tuple)):
            return [self.read(value, (*path, index)) for index, value in enumerate(node)]
        if node is None or isinstance(node, bool):
            return node
        if isinstance(node, ScalarBoolean):  # a truth value with an anchor
            return bool(node)
        if isinstance(node, int):
            return self._integer(int(node), path)
        return float(node) if isinstance(node, float) else str(node)

    def _mapping(self, node: Mapping[Any, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            name = str(key)
            if name in found:
                self._note((*path, key), f"keys must differ, but {name!r} is there twice. Remove one.")
            found[name] = self.read(value, (*path, key))
        return found

    def _integer(self, value: int, path: tuple[str | int, ...]) -> int:
        if abs(value) > MAX_INTEGER:
            self._note(path, f"a whole number must be at most {MAX_INTEGER}, but is larger. Write it smaller.")
            return 0
        return value

    def _note(self, path: tuple[str | int, ...], message: str) -> None:
        self.problems.append(self.document.problem(path, message))


def apply_override(data: Any, override: str) -> None:
    """Sets one field in place: `base.model=gpt2`, `trials.finetuned.train.max_steps=10`.

    An element of a list is named by its index or, where elements have a `name`, by that.

    Raises:
        ValueError: not PATH=VALUE, a value that is not YAML, or a list without such an element.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ValueError("an override must be PATH=VALUE, such as base.train.max_steps=100.")
    set_path(data, path.split("."), parse_value(text))


def parse_value(text: str) -> Any:
    """A YAML value from the command line."""
    if is_hopeless(text):
        raise ValueError(_TOO_DEEP)
    try:
        value = YAML(typ="safe", pure=True).load(text)
        reader = _Plain(Document({}, value, text))
        plain = reader.read(value, ())
    except (YAMLError, RecursionError, SpecError) as error:
        raise ValueError(f"the value must be YAML, but {text[:_SHOWN]!r} is not. Quote it.") from error
    if reader.problems:
        raise ValueError(reader.problems[0].message)
    return plain


def bounded_value(text: str) -> Any:
    """A YAML value that anybody may have written, as plain data within the bounds of a spec, aliases expanded.

    Raises:
        ValueError: it is not YAML, is nested too deep, holds too many values, or a number that is too large.
    """
    if is_hopeless(text):
        raise ValueError(_TOO_DEEP)
    try:
        value = YAML(typ="rt").load(io.StringIO(text))  # the safe loader would copy what `<<` merges, again and again
        reader = _Plain(Document({}, value, ""))
        plain = reader.read(value, ())
    except YAMLError as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except SpecError as error:
        raise ValueError(error.problems[0].message) from error
    if reader.problems:
        raise ValueError(reader.problems[0].message)
    return plain
