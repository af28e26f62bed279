"""What pydantic found wrong, in our words: rule, value, way out, and the line."""

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from prunegpt.errors import Problem, unknown
from prunegpt.spec.read import Document

_HIDDEN = {"function-before", "function-after", "function-plain"}


def problems_of(
    error: ValidationError, model: type[BaseModel], document: Document, prefix: Sequence[str | int] = ()
) -> list[Problem]:
    """One problem an error, each with the path that `--set` takes and its line in the file."""
    found = []
    for item in error.errors(include_url=False):
        path = _real(item["loc"], model)
        if item["type"] == "extra_forbidden":
            key, parent = str(item["loc"][-1]), _fields_at(item["loc"][:-1], model)
            message = unknown("key", key, parent)
        elif item["type"] == "missing":
            message = f"{item['loc'][-1]} is required."
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
        elif item["type"] == "string_pattern_mismatch":
            message = f"a name holds letters, digits and ._=+,@-, a letter or digit first, but got {item['input']!r}."
        else:
            message = f"{_lower(item['msg'])}, but got {_short(item['input'])}."
        found.append(document.problem((*prefix, *path), message))
    return found


def _lower(message: str) -> str:
    return (message[0].lower() + message[1:]).replace("input should be", "must be").rstrip(".")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _parts(annotation: Any) -> Iterator[Any]:
    """The annotation with Annotated and unions taken off."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for inner in get_args(annotation):
            yield from _parts(inner)
    else:
        yield annotation


def _step(annotation: Any, step: str | int) -> Any:
    """The annotation one step down, or None where the step is no part of the data (a union's tag)."""
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel) and step in part.model_fields:
            field = part.model_fields[str(step)]
            return field.rebuild_annotation()
        origin, args = get_origin(part), get_args(part)
        if origin is tuple and isinstance(step, int):
            return args[0]
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return args[1]
    return None


def _fields_at(path: Sequence[str | int], model: Any) -> list[str]:
    annotation: Any = model
    for step in path:
        annotation = _step(annotation, step) or annotation
    return [
        name
        for part in _parts(annotation)
        if isinstance(part, type) and issubclass(part, BaseModel)
        for name in part.model_fields
    ]


def _real(path: Sequence[str | int], model: type[BaseModel]) -> tuple[str | int, ...]:
    """The path without the steps that pydantic adds for unions and validators."""
    annotation: Any = model
    real = []
    for index, step in enumerate(path):
        below = _step(annotation, step)
        if below is None:
            if index == len(path) - 1 and _fields_at((), annotation) and step not in _tags(annotation):
                real.append(step)  # the unknown key itself
            continue
        real.append(step)
        annotation = below
    return tuple(real)


def _tags(annotation: Any) -> set[str]:
    """The names pydantic gives the branches of a union in an error's path."""
    return (
        _HIDDEN
        | {part.__name__ for part in _parts(annotation) if isinstance(part, type)}
        | {"str", "int", "float", "bool"}
    )
