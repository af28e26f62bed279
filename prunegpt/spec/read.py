"""A spec file becomes plain data that remembers its lines. `--set` is applied here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from prunegpt.errors import Problem, SpecError
from prunegpt.spec.paths import set_path as set_path
from prunegpt.spec.wandb import Converted, FieldPath, is_sweep, to_spec
from prunegpt.spec.yaml import MAX_BYTES as MAX_BYTES
from prunegpt.spec.yaml import MAX_DEPTH as MAX_DEPTH
from prunegpt.spec.yaml import MAX_NODES as MAX_NODES
from prunegpt.spec.yaml import NotYamlError, TooMuchError, built, compose, line_in, text_of

MAX_INTEGER = 2**63 - 1  # what every reader of JSON and every database column takes

_SHOWN = 80  # characters of a value in a message
_KINDS = {str: "plain text", bool: "a truth value", int: "a number", float: "a number"}

_TOO_DEEP = f"a spec may be nested {MAX_DEPTH} levels deep; it is nested deeper. Flatten it."


@dataclass(frozen=True)
class Document:
    """A parsed spec: the plain data, and where it came from."""

    data: dict[str, Any]
    marked: Any  # its node, which knows the lines of the file; None of data that was no file
    source: str
    places: Mapping[FieldPath, FieldPath] = field(default_factory=dict)  # path -> where the file says it, if elsewhere

    def line(self, path: Sequence[str | int]) -> int | None:
        """The line, counted from 1, of the deepest part of the path that the file has."""
        return line_in(self.marked, self._written(tuple(path)))

    def _written(self, path: FieldPath) -> FieldPath:
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return (*self.places[path[:length]], *path[length:])
        return path

    def problem(self, path: Sequence[str | int], message: str) -> Problem:
        return Problem(".".join(str(step) for step in path), message, self.line(path), self._trial(path))

    def _trial(self, path: Sequence[str | int]) -> str:
        """What the spec calls the trial that a field is of; empty where it is of none, or has no name."""
        match path:
            case ("trials", int(index), *_):
                trials = self.data.get("trials") or ()  # not there while the spec is being read
                trial = trials[index] if index < len(trials) else None
                return str(trial.get("name", "")) if isinstance(trial, Mapping) else ""
        return ""


def read_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Reads a YAML file and applies `PATH=VALUE` overrides.

    Raises:
        SpecError: the file is missing, too large, not UTF-8, not YAML, or no mapping; or an override has no such place.
    """
    source = str(path)
    try:
        text = text_of(path, "a spec")
    except ValueError as error:
        raise SpecError([Problem("", str(error))], source) from error
    return parse_document(text, source, overrides)


def parse_document(text: str, source: str, overrides: Sequence[str] = ()) -> Document:
    """As read_document, from text."""
    try:
        node = compose(text, "a spec")
        if isinstance(node, MappingNode):
            return _document(built(node), node, source, overrides)
        kind = "a list" if isinstance(node, SequenceNode) else _kind(built(node))
    except (NotYamlError, TooMuchError) as error:
        raise SpecError([Problem("", str(error), error.line)], source) from error
    raise SpecError(
        [Problem("", f"a spec must be a mapping with name, base and trials; the file holds {kind}.")], source
    )


def _kind(value: Any) -> str:
    return "nothing" if value is None else _KINDS[type(value)]


def plain_document(data: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Document:
    """As read_document, from plain data that has no lines."""
    return _document(data, None, source, overrides)


def _document(given: Any, marked: Node | None, source: str, overrides: Sequence[str]) -> Document:
    document = Document({}, marked, source)
    reader = _Plain(document)
    data = reader.read(given, ())
    problems = list(reader.problems)
    places: Mapping[FieldPath, FieldPath] = {}
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
            raise SpecError([Problem("program", "program must name another file; it names this one.")], source)
        return read_document(path).data

    return to_spec(data, Path(source).stem, read)


class _Plain:
    """Makes plain dicts, lists and scalars of what is given, and notes what a spec may not hold."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self._count = 0

    def read(self, node: Any, path: tuple[str | int, ...]) -> Any:
        self._count += 1
        if self._count > MAX_NODES or len(path) > MAX_DEPTH:
            many = f"a spec may hold {MAX_NODES} values after its aliases are expanded; it holds more."
            message = many if self._count > MAX_NODES else _TOO_DEEP
            raise SpecError([self.document.problem(path[:1], message)], self.document.source)
        if isinstance(node, Mapping):
            return self._mapping(node, path)
        if isinstance(node, (list, tuple)):
            return [self.read(value, (*path, index)) for index, value in enumerate(node)]
        if node is None or isinstance(node, bool):
            return node
        if isinstance(node, int):
            return self._integer(int(node), path)
        return float(node) if isinstance(node, float) else str(node)

    def _mapping(self, node: Mapping[Any, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            name = str(key)
            if name in found:
                self._note((*path, key), f"keys must differ; {name!r} is there twice. Remove one.")
            found[name] = self.read(value, (*path, key))
        return found

    def _integer(self, value: int, path: tuple[str | int, ...]) -> int:
        if abs(value) > MAX_INTEGER:
            self._note(path, f"a whole number must be at most {MAX_INTEGER}; it is larger. Write it smaller.")
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
    """A YAML value from the command line.

    Raises:
        ValueError: it is not YAML, or more than a spec may hold.
    """
    try:
        return _plain(built(compose(text, "the value"), tags=False))
    except NotYamlError as error:
        raise ValueError(f"the value must be YAML; {text[:_SHOWN]!r} is not. Quote it.") from error


def bounded_value(text: str) -> Any:
    """A YAML value that anybody may have written, as plain data within the bounds of a spec, aliases expanded.

    Raises:
        ValueError: it is not YAML, is nested too deep, holds too many values, or a number that is too large.
    """
    return _plain(built(compose(text, "a value")))


def _plain(value: Any) -> Any:
    reader = _Plain(Document({}, None, ""))
    try:
        plain = reader.read(value, ())
    except SpecError as error:
        raise ValueError(error.problems[0].message) from error
    if reader.problems:
        raise ValueError(reader.problems[0].message)
    return plain
