"""Arithmetic in recipes: `eval(...)` and `calc(...)` are computed by a walk over their syntax, never run as code."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from prunegpt.errors import PruneGPTError, unknown

Number = int | float

MAX_LENGTH = 1_000  # characters of an expression
MAX_BITS = 4_096  # of an integer result
_MAX_DIGITS = 300  # second argument of round
_MAX_PASSES = 100  # replacements in one text

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {  # name -> function, fewest and most arguments
    "abs": (abs, 1, 1),
    "float": (float, 1, 1),
    "int": (int, 1, 1),
    "max": (max, 2, 64),
    "min": (min, 2, 64),
    "round": (round, 1, 2),
}
_GRAMMAR = "numbers, names of variables, + - * / // ** %, parentheses and " + ", ".join(_FUNCTIONS)


class ExpressionError(PruneGPTError, ValueError):
    """An expression of a recipe that is no arithmetic, or has no finite value."""


def evaluate(expression: str, names: Mapping[str, Number] | None = None) -> Number:
    """The value of an arithmetic expression, as Python computes it.

    Args:
        expression: numbers, names, + - * / // ** %, unary + and -, abs, float, int, max, min, round.
        names: what names stand for.

    Raises:
        ExpressionError: anything else in it, an unknown name, or a value that is undefined, not finite or too large.
    """
    text = expression.strip()
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"an expression may have {MAX_LENGTH} characters, but has {len(text)}.")
    try:
        tree = ast.parse(text, mode="eval").body
        value = _value(tree, names or {})
    except ExpressionError as error:
        raise ExpressionError(f"{_short(text)}: {error}") from error.__cause__
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ExpressionError(f"an expression must be arithmetic ({_GRAMMAR}), but got {_short(text)!r}.") from error
    return value


def _value(node: ast.expr, names: Mapping[str, Number]) -> Number:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return _bounded(node.value)
    if isinstance(node, ast.Name):
        return _named(node.id, names)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        value: Number = _UNARY[type(node.op)](_value(node.operand, names))
        return value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, names), _value(node.right, names)
        if isinstance(node.op, ast.Pow):
            _check_power(left, right)
        return _computed(_BINARY[type(node.op)], left, right)
    if isinstance(node, ast.Call):
        return _call(node, names)
    raise ExpressionError(f"only {_GRAMMAR} are allowed, but it holds {_describe(node)}.")


def _named(name: str, names: Mapping[str, Number]) -> Number:
    if name not in names:
        raise ExpressionError(unknown("variable", name, names))
    value = names[name]
    if type(value) not in (int, float):
        raise ExpressionError(f"a variable in arithmetic must be a number, but {name} is {value!r}.")
    return _bounded(value)


def _call(node: ast.Call, names: Mapping[str, Number]) -> Number:
    if not isinstance(node.func, ast.Name):
        raise ExpressionError(f"only {', '.join(_FUNCTIONS)} may be called, but it calls {_describe(node.func)}.")
    if node.func.id not in _FUNCTIONS:
        raise ExpressionError(f"only {', '.join(_FUNCTIONS)} may be called, but it calls {node.func.id}.")
    if node.keywords:
        raise ExpressionError("arguments have no names in an expression. Write round(x, 2).")
    function, fewest, most = _FUNCTIONS[node.func.id]
    if not fewest <= len(node.args) <= most:
        count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise ExpressionError(f"{node.func.id} takes {count} arguments, but got {len(node.args)}.")
    values = [_value(argument, names) for argument in node.args]
    if function is round and len(values) == 2 and (type(values[1]) is not int or abs(values[1]) > _MAX_DIGITS):
        raise ExpressionError(f"round takes a whole number of digits up to {_MAX_DIGITS}, but got {values[1]}.")
    return _computed(function, *values)


def _check_power(base: Number, exponent: Number) -> None:
    whole = isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1 and exponent > 0
    if whole and math.log2(abs(base)) * exponent > MAX_BITS:
        raise ExpressionError(f"a power may have {MAX_BITS} bits, but {_short(f'{base} ** {exponent}')} has more.")


def _computed(function: Callable[..., Any], *values: Number) -> Number:
    try:
        result = function(*values)
    except ZeroDivisionError as error:
        raise ExpressionError("it divides by zero.") from error
    except (OverflowError, ValueError) as error:
        raise ExpressionError(f"its value is too large or undefined ({error}).") from error
    if type(result) not in (int, float):
        raise ExpressionError("its value must be a real number: a negative number has no fractional power.")
    return _bounded(result)


def _bounded(value: Number) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise ExpressionError(f"a whole number may have {MAX_BITS} bits, but has {value.bit_length()}.")
    elif not math.isfinite(value):
        raise ExpressionError(f"its value must be finite, but is {value}.")
    return value


def _describe(node: ast.AST) -> str:
    kinds = {
        ast.Attribute: "an attribute",
        ast.Subscript: "a subscript",
        ast.Lambda: "a function",
        ast.Compare: "a comparison",
        ast.IfExp: "a condition",
        ast.BoolOp: "and/or",
        ast.NamedExpr: "an assignment",
        ast.Constant: "a constant that is no number",
        ast.BinOp: "an operator of bits or matrices",
        ast.UnaryOp: "an operator of bits or truth values",
    }
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        return "a comprehension"
    return kinds.get(type(node), f"a {type(node).__name__.lower()}")


def computed(value: Any, variables: Mapping[str, Any], compute: Callable[[str, Mapping[str, Any]], Any]) -> Any:
    """A value with the expressions in it, and in what it holds, replaced.

    Args:
        compute: how a text becomes a value: :func:`whole_value` or :func:`substitute`.

    Raises:
        ExpressionError: one has no value.
    """
    if isinstance(value, list):
        return [computed(item, variables, compute) for item in value]
    if isinstance(value, dict):
        return {key: computed(item, variables, compute) for key, item in value.items()}
    return compute(value, variables) if isinstance(value, str) else value


def resolve_variables(
    variables: Mapping[str, Any], compute: Callable[[str, Mapping[str, Any]], Any] | None = None
) -> dict[str, Any]:
    """Replaces the expressions in variables, whatever their order.

    Raises:
        ExpressionError: an expression has no value, or variables depend on each other in a circle.
    """
    resolved: dict[str, Any] = {}

    def resolve(name: str, above: tuple[str, ...]) -> None:
        if name in resolved:
            return
        if name in above:
            circle = " -> ".join([*above[above.index(name) :], name])
            raise ExpressionError(f"variables must not depend on each other in a circle, but {circle}.")
        if len(above) > _MAX_PASSES:
            raise ExpressionError(f"variables may depend on each other {_MAX_PASSES} deep, but {name} is deeper.")
        for needed in _names_in(variables[name]):
            if needed in variables:
                resolve(needed, (*above, name))
        resolved[name] = computed(variables[name], resolved, compute or whole_value)

    for name in variables:
        resolve(name, ())
    return resolved


def _names_in(value: Any) -> list[str]:
    """The names that expressions in a value mention, in order."""
    text, found = str(value), []
    for opening in re.finditer(r"eval(?=\()", text):
        try:
            inside = text[opening.end() : _closing(text, opening.end())]
        except ExpressionError:  # said when it is computed
            continue
        found += re.findall(r"[^\W\d]\w*", inside)
    return list(dict.fromkeys(found))


def whole_value(text: str, variables: Mapping[str, Any]) -> Any:
    """What a text comes to where it is one `eval(...)` and nothing else, as the legacy dialect wants it.

    `eval(NAME)` gives any value, also a list or a text; any other expression a number; any other text itself.

    Raises:
        ExpressionError: it has no value.
    """
    if not (text.startswith("eval(") and text.endswith(")")):
        return text
    inner = text[5:-1].strip()
    return variables[inner] if inner in variables else evaluate(inner, variables)


def substitute(text: str, variables: Mapping[str, Any]) -> str | float:
    """Replaces each `eval(...)` inside a longer text, as the session dialect does; a number where nothing else is left.

    Raises:
        ExpressionError: an expression has no value, or its parenthesis is not closed.
    """
    for _ in range(_MAX_PASSES):
        begin = text.rfind("eval(")
        if begin < 0:
            return text
        end = _closing(text, begin + 4)
        inner = text[begin + 5 : end].strip()
        value = variables[inner] if inner in variables else evaluate(inner, variables)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)  # `layers.eval(n).` means layers.3., not layers.3.0.
        text = f"{text[:begin]}{value}{text[end + 1 :]}"
        if len(text) > 100 * MAX_LENGTH:
            raise ExpressionError(f"a text may have {100 * MAX_LENGTH} characters after eval(...) is replaced.")
        try:
            number = float(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
        raise ExpressionError(f"its value must be finite, but is {text}.")
    raise ExpressionError(
        f"a text may hold {_MAX_PASSES} expressions and no variables that depend on each other in a circle, "
        f"but got {_short(text)!r}."
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise ExpressionError(f"every eval( must be closed, but {_short(text)!r} is not.")


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
