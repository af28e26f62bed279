"""What every part of a spec is made of."""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema, from_json

NAME = r"^[A-Za-z0-9][A-Za-z0-9._=+,@-]*$"
MAX_NAME = 150  # characters; a name is a folder's, with a seed, a teacher's sweep or a temporary ending behind it
TEMPLATE = r"^[A-Za-z0-9{][A-Za-z0-9._=+,@{}-]*$"

REFERENCE = "`prunegpt sweep fields`"  # prints all fields, columns and kinds of figures of a spec

Scalar = bool | int | float | str
Message = tuple[str, str]  # a field, and what is wrong with it


def short(name: str) -> str:
    """A name that can be a folder's.

    Raises:
        ValueError: it is too long for that.
    """
    if len(name) > MAX_NAME:
        raise ValueError(
            f"a name may have {MAX_NAME} characters, because folders have it; {name[:40]}... has {len(name)}. Choose a "
            "shorter one."
        )
    return name


_NUMBERS = frozenset({"int", "float"})  # kinds of core schemas
_INNER = ("schema", "items_schema", "keys_schema", "values_schema", "choices", "steps", "fields")  # what they hold


def _within(node: Any, *, inside: bool = True) -> Any:
    """A core schema with numbers that refuse truth values, which pydantic takes for 0 and 1.

    Args:
        node: a schema, or what one holds.
        inside: whether it is of a field; another part within has been through this.
    """
    if isinstance(node, list):
        return [_within(item) for item in node]
    if not isinstance(node, dict):
        return node
    if not isinstance(kind := node.get("type"), str):  # fields by name
        return {name: _within(item) for name, item in node.items()}
    if inside and kind in ("model", "definition-ref"):
        return node
    kinds = (
        {choice.get("type") for choice in node["choices"] if isinstance(choice, dict)} if kind == "union" else {kind}
    )
    if "bool" in kinds:
        return node
    if kinds & _NUMBERS:
        guarded = core_schema.no_info_before_validator_function(_no_truth_value, node)
        return core_schema.json_or_python_schema(json_schema=node, python_schema=guarded)
    below = inside or kind == "model"
    return {**node, **{name: _within(node[name], inside=below) for name in _INNER if name in node}}


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a number")
    return value


class Part(BaseModel):
    """Frozen; an unknown key is an error, and so is a number that is not finite, and a truth value for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    BARE: ClassVar[str] = ""  # the field that a text or number in place of the whole means

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        found: CoreSchema = _within(handler(source), inside=False)
        return core_schema.no_info_before_validator_function(cls._of_bare, found) if cls.BARE else found

    @classmethod
    def _of_bare(cls, value: Any) -> Any:
        bare = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        return {cls.BARE: value} if bare else value

    @classmethod
    def reopened(cls, written: str | bytes) -> Self:
        """What this version or another one wrote as JSON. It was valid then, and is shown, not run.

        Keys that are unknown now are passed over, and missing ones take their defaults. Rules that it breaks, such as
        one that is newer than it, or names of a plug-in that is not installed here, are not held against it.

        Raises:
            ValueError: it is no JSON, or lacks a field that has no default; the field is named.
        """
        try:
            return cls.model_validate_json(written, extra="ignore")
        except ValidationError:
            found: Self = _taken(cls, from_json(written), "")
            return found


def in_short(error: Exception) -> str:
    """What is wrong with JSON that is no such part, in a line: of a pydantic error the first problem and a count."""
    if not isinstance(error, ValidationError):
        return str(error)
    first, *others = error.errors(include_url=False)
    place = ".".join(map(str, first["loc"]))
    return f"{place}: " * bool(place) + first["msg"] + f" (and {len(others)} more)" * bool(others)


def _taken(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as the type `kind`; only its shape is checked."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _taken(parts[0], value, where)
    if origin in (Union, UnionType):
        return _one_of(parts, value, where)
    if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping):
        missing = [name for name, field in kind.model_fields.items() if field.is_required() and name not in value]
        if missing:
            raise ValueError(f"{f'{where}.{missing[0]}'.lstrip('.')} is missing")
        known = {name: field.annotation for name, field in kind.model_fields.items() if name in value}
        return kind.model_construct(**{name: _taken(of, value[name], f"{where}.{name}") for name, of in known.items()})
    if origin is tuple and isinstance(value, list):
        kinds = (parts[0],) * len(value) if parts[1:] == (...,) else parts
        return tuple(_taken(of, item, f"{where}.{at}") for at, (of, item) in enumerate(zip(kinds, value, strict=False)))
    if origin is Mapping and isinstance(value, Mapping):
        return {key: _taken(parts[1], item, f"{where}.{key}") for key, item in value.items()}
    plain = {float: (int, float)}.get(kind, kind if kind in (int, str, bool, NoneType) else object)
    is_part = isinstance(kind, type) and issubclass(kind, BaseModel)
    if is_part or origin in (tuple, Mapping) or not isinstance(value, plain):
        raise ValueError(f"{where.lstrip('.') or 'it'} is {str(value)[:60]!r}")
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The value as the first of several types that it has the shape of."""
    problem = ValueError()
    for kind in kinds:
        try:
            return _taken(kind, value, where)
        except ValueError as error:
            problem = error
    raise problem
