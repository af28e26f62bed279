"""Arithmetic that is computed by a walk over its syntax, never run as code, with bounds on what it may cost.

Recipes (`recipes/expressions.py`) and filters of trials (`report/query.py`) share it.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from prunegpt.errors import PruneGPTError

Number = int | float

MAX_LENGTH = 1_000  # characters of an expression
MAX_BITS = 4_096  # of an integer result
_MAX_DIGITS = 300  # second argument of round

OPERATORS: Mapping[type[ast.operator | ast.unaryop], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class ExpressionError(PruneGPTError, ValueError):
    """An expression that is not understood, or has no finite value."""


def applied(function: Callable[..., Any], *values: Number) -> Number:
    """The value of an operator or function at numbers.

    Raises:
        ExpressionError: it is undefined, not finite or too large.
    """
    first, *others = values
    if function is round and others and (type(others[0]) is not int or abs(others[0]) > _MAX_DIGITS):
        raise ExpressionError(f"round takes a whole number of digits up to {_MAX_DIGITS}, got {others[0]}.")
    whole = function is operator.pow and all(type(value) is int for value in values)
    if whole and abs(first) > 1 and math.log2(abs(first)) * others[0] > MAX_BITS:
        raise ExpressionError(f"a power may have {MAX_BITS} bits; {short(f'{first} ** {others[0]}')} has more.")
    try:
        result = function(*values)
    except ZeroDivisionError as error:
        raise ExpressionError("it divides by zero.") from error
    except (OverflowError, ValueError) as error:
        raise ExpressionError(f"its value is too large or undefined ({error}).") from error
    return finite_number(result, "its value must be a real number: a negative number has no fractional power.")


def finite_number(value: Any, otherwise: str) -> Number:
    """The value, a finite number of bounded size.

    Raises:
        ExpressionError: it is none; with the message `otherwise` where it is no number at all.
    """
    if type(value) is int:
        if value.bit_length() <= MAX_BITS:
            return value
        raise ExpressionError(f"a whole number may have {MAX_BITS} bits; it has {value.bit_length()}.")
    if type(value) is not float:
        raise ExpressionError(otherwise)
    if not math.isfinite(value):
        raise ExpressionError(f"its value must be finite, got {value}.")
    return value


def short(text: str) -> str:
    """A text as messages quote it."""
    return text if len(text) <= 80 else text[:77] + "..."
