"""Numbers of a spec: a truth value is none, and what enters a computation has an upper bound. Over all fields."""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import ValidationError

from prunegpt.spec.part import Part
from prunegpt.spec.reference import parts
from prunegpt.spec.schema import PruneSpec, StageSpec
from prunegpt.spec.shrink import COUNTED, SIZES, BudgetSpec

NUMBERS = (int, float)
HUGE = 1e300
# Times, which the length of a training bounds; losses that were measured; sizes, which the model bounds.
UNBOUNDED = {"start", "end", "every", "curves", *SIZES, *COUNTED}


def placed(annotation: Any, value: Any) -> Iterator[Any]:
    """Values of a type with `value` at each place where it has a number and no truth value."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in NUMBERS:
        yield value
    elif origin is Annotated:
        yield from placed(inner[0], value)
    elif origin in (Union, UnionType):
        for one in () if bool in inner else inner:
            yield from placed(one, value)
    elif origin is tuple:
        yield from (
            [item] * max(1, len([kind for kind in inner if kind is not ...])) for item in placed(inner[0], value)
        )
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        key = 0 if inner[0] is int else "a"
        yield from ({key: item} for item in placed(inner[1], value))


def fields(value: Any) -> list[tuple[type[Part], str, Any]]:
    return [
        (part, name, given)
        for part in parts()
        for name, field in part.model_fields.items()
        for given in placed(field.annotation, value)
    ]


def refusals(part: type[Part], name: str, given: Any) -> list[str]:
    try:
        part.model_validate({name: given})
    except ValidationError as error:
        return [item["msg"] for item in error.errors() if item["loc"][:1] == (name,)]
    return []


def label(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


BOOLEANS = fields(True)
assert len(BOOLEANS) > 60


@pytest.mark.parametrize(("part", "name", "given"), BOOLEANS, ids=label)
def test_a_truth_value_is_no_number(part: type[Part], name: str, given: Any) -> None:
    assert any("should be a" in message for message in refusals(part, name, given))


def of_stages() -> set[type[Part]]:
    """The parts that a stage is made of."""
    found, open_ = {StageSpec}, [StageSpec]

    def inside(annotation: Any) -> Iterator[type[Part]]:
        if isinstance(annotation, type) and issubclass(annotation, Part):
            yield annotation
        for one in get_args(annotation):
            yield from inside(one)

    while open_:
        part = open_.pop()
        for field in part.model_fields.values():
            new = {*inside(field.annotation)} - found
            found |= new
            open_ += new
    return found


COMPUTED = [(part, name, given) for part, name, given in fields(HUGE) if part in of_stages() and name not in UNBOUNDED]
assert len(COMPUTED) > 15


@pytest.mark.parametrize(("part", "name", "given"), COMPUTED, ids=label)
def test_a_number_that_no_computation_can_take_is_refused(part: type[Part], name: str, given: Any) -> None:
    assert refusals(part, name, given)


def test_numbers_are_read_as_before() -> None:
    """Whole numbers, fractions and texts of numbers, each as the kind that its field has."""
    assert [type(BudgetSpec(parameters=value).parameters) for value in (0.5, 1000)] == [float, int]
    read = PruneSpec.model_validate({"sparsity": "1e-3", "options": {"a": 3, "b": 3.0, "c": True, "d": "x"}})
    assert read.sparsity == 0.001
    assert [type(value) for value in read.options.values()] == [int, float, bool, str]
