"""Options of parts: each that a spec names belongs to a part, and has the type and range that the part declares."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from prunegpt.errors import unknown
from prunegpt.spec.problems import hint_of, in_words

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # no text for a number, no truth value for one


def option_problems(part: str, given: Mapping[str, Any], valid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with options, each with its name.

    Args:
        part: what messages call the part, or the parts that share the options.
        given: the options of a spec.
        valid: name -> type with its range, of all that the parts take.
    """
    for name, value in given.items():
        if name not in valid:
            yield name, unknown(f"option of {part}", name, valid)
        elif message := value_problem(value, valid[name]):
            yield name, f"option {name} of {part} {message}"


def value_problem(value: Any, kind: Any) -> str | None:
    """Why a value is not of a type and in its range, with the hint that the type carries; None where it is."""
    try:
        TypeAdapter(kind, config=_STRICT).validate_python(value)
    except ValidationError as error:
        rules = dict.fromkeys(in_words(item["msg"]).removeprefix("must be ") for item in error.errors())
        hints = [item for item in get_args(kind)[1:] if isinstance(item, str)] or [hint_of(error.errors()[0])]
        return " ".join([f"must be {' or '.join(rules)}, got {value!r}.", *hints])
    return None
