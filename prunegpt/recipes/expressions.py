"""Arithmetic in recipes: `eval(...)` and `calc(...)` are computed by a walk over their syntax, never run as code."""

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from prunegpt.errors import unknown
from prunegpt.spec.arithmetic import MAX_LENGTH, OPERATORS, ExpressionError, Number, applied, finite_number, short

_MAX_PASSES = 100  # replacements in one text

_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], range]] = {  # name -> function, numbers of arguments
    "abs": (abs, range(1, 2)),
    "float": (float, range(1, 2)),
    "int": (int, range(1, 2)),
    "max": (max, range(2, 65)),
    "min": (min, range(2, 65)),
    "round": (round, range(1, 3)),
}
_GRAMMAR = "numbers, names of variables, + - * / // ** %, parentheses and " + ", ".join(_FUNCTIONS)


def evaluate(expression: str, names: Mapping[str, Any] | None = None) -> Number:
    """The value of an arithmetic expression, as Python computes it.

    Args:
        expression: numbers, names, + - * / // ** %, unary + and -, abs, float, int, max, min, round.
        names: what names stand for.

    Raises:
        ExpressionError: anything else in it, an unknown name, or a value that is undefined, not finite or too large.
    """
    text = expression.strip()
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"an expression may have {MAX_LENGTH} characters; it has {len(text)}.")
    try:
        return _value(ast.parse(text, mode="eval").body, names or {})
    except ExpressionError as error:
        raise ExpressionError(f"{short(text)}: {error}") from error.__cause__
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ExpressionError(f"an expression must be arithmetic ({_GRAMMAR}), got {short(text)!r}.") from error


def _value(node: ast.expr, names: Mapping[str, Any]) -> Number:
    match node:
        case ast.Constant(value=value):
            return finite_number(value, f"a constant must be a number, got {short(repr(value))}.")
        case ast.Name(id=name) if name in names:
            return finite_number(names[name], f"a variable in arithmetic must be a number; {name} is {names[name]!r}.")
        case ast.Name(id=name):
            raise ExpressionError(unknown("variable", name, names))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return applied(OPERATORS[type(op)], _value(operand, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return applied(OPERATORS[type(op)], _value(left, names), _value(right, names))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            function, counts = _FUNCTIONS[name]
            if len(args) not in counts:
                count = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
                raise ExpressionError(f"{name} takes {count} arguments, got {len(args)}.")
            return applied(function, *[_value(argument, names) for argument in args])
    raise ExpressionError(f"only {_GRAMMAR} are allowed; it holds {short(ast.unparse(node))}.")


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
    variables: Mapping[str, Any],
    compute: Callable[[str, Mapping[str, Any]], Any] | None = None,
    outer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Replaces the expressions in variables, whatever their order.

    Args:
        variables: of a recipe or of one of its stages.
        compute: how a text becomes a value: :func:`whole_value` or :func:`substitute`.
        outer: resolved variables of the whole recipe, where `variables` are a stage's. As in SparseML a bare
            `eval(NAME)` takes the recipe's value where there is one, also beside a number of that name in the stage;
            so `rate: eval(rate)` hands one on. Arithmetic takes the stage's first.

    Raises:
        ExpressionError: an expression has no value, or variables depend on each other in a circle.
    """
    outer = outer or {}
    resolved: dict[str, Any] = {}

    def handed_on(value: Any) -> str | None:
        bare = re.fullmatch(r"eval\(\s*(\w+)\s*\)", value) if isinstance(value, str) else None
        return bare[1] if bare and bare[1] in outer and not _is_plain(variables.get(bare[1])) else None

    def resolve(name: str, above: tuple[str, ...]) -> None:
        if name in resolved:
            return
        if (taken := handed_on(variables[name])) is not None:
            resolved[name] = outer[taken]
            return
        if name in above:
            circle = " -> ".join([*above[above.index(name) :], name])
            raise ExpressionError(f"variables must not depend on each other in a circle: {circle}.")
        if len(above) > _MAX_PASSES:
            raise ExpressionError(f"variables may depend on each other {_MAX_PASSES} deep; {name} is deeper.")
        for needed in _names_in(variables[name]):
            if needed in variables:
                resolve(needed, (*above, name))
        resolved[name] = computed(variables[name], {**outer, **resolved}, compute or whole_value)

    for name in variables:
        resolve(name, ())
    return resolved


def _is_plain(value: Any) -> bool:
    """Whether a variable is a text or a list, of which SparseML takes the stage's own."""
    return isinstance(value, (list, dict)) or (isinstance(value, str) and "eval(" not in value)


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
        raise ExpressionError(f"its value must be finite, got {text}.")
    raise ExpressionError(
        f"a text may hold {_MAX_PASSES} expressions and no variables that depend on each other in a circle, got "
        f"{short(text)!r}."
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise ExpressionError(f"every eval( must be closed; {short(text)!r} is not.")
