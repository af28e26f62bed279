import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.recipes.expressions import evaluate, resolve_variables, substitute, whole_value
from prunegpt.spec.arithmetic import ExpressionError

NAMES = {"a": 3, "b": -2, "c": 0.5, "zero": 0}
numbers = st.one_of(
    st.integers(0, 30).map(str),
    st.floats(0, 100, allow_nan=False).map(repr),
    st.sampled_from([*NAMES, "1e-7", "1_000"]),
)


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["+", "-", "*", "/", "//", "%", "**"])
    return st.one_of(
        st.tuples(inner, operators, inner).map(" ".join),  # without parentheses: precedence is Python's
        st.tuples(inner, operators, inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda text: f"-{text}"),
        inner.map(lambda text: f"+({text})"),
        st.tuples(st.sampled_from(["abs", "float", "int", "round"]), inner).map(lambda pair: f"{pair[0]}({pair[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda part: f"{part[0]}({part[1]}, {part[2]})"),
        st.tuples(inner, st.integers(-3, 3)).map(lambda pair: f"round({pair[0]}, {pair[1]})"),
    )


expressions = st.recursive(numbers, _grown, max_leaves=8)
PYTHON = {"abs": abs, "float": float, "int": int, "round": round, "min": min, "max": max}


def _is_finite_in_python(expression: str) -> bool:
    try:
        value = eval(expression, {"__builtins__": PYTHON}, dict(NAMES))
    except (ZeroDivisionError, OverflowError, ValueError, TypeError):
        return False
    return not isinstance(value, complex) and math.isfinite(value)


@settings(max_examples=500, deadline=None)
@given(expressions)
def test_it_computes_what_python_computes(expression: str) -> None:
    try:
        ours = evaluate(expression, NAMES)
    except ExpressionError as error:
        if any(word in str(error) for word in ("bits", "characters", "must be finite", "must be a real number")):
            return  # too large for us on the way, and perhaps for this machine; or complex on the way to a real number
        assert not _is_finite_in_python(expression)
        return
    theirs = eval(expression, {"__builtins__": PYTHON}, dict(NAMES))
    assert ours == theirs
    assert type(ours) is type(theirs)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("__import__('os').system('ls')", "it holds __import__"),
        ("a.real", "it holds a.real"),
        ("(1).__class__", "it holds 1 .__class__"),
        ("open('x')", "it holds open"),
        ("eval('1')", "it holds eval"),
        ("[x for x in (1, 2)]", r"it holds \[x for x"),
        ("(lambda: 1)()", r"it holds \(lambda"),
        ("a[0]", r"it holds a\[0\]"),
        ("'9' * 9", "a constant must be a number, got '9'"),
        ("True + 1", "a constant must be a number, got True"),
        ("2j", "a constant must be a number, got 2j"),
        ("1 if a else 2", "it holds 1 if a else 2"),
        ("a < b", "it holds a < b"),
        ("a and b", "it holds a and b"),
        ("(n := 1)", r"it holds \(n := 1\)"),
        ("a << 3", "it holds a << 3"),
        ("~a", "it holds ~a"),
        ("max(*(1, 2))", "takes 2 to 64 arguments, got 1"),
        ("max((1, 2), 3)", r"it holds \(1, 2\)"),
        ("round(number=1)", r"it holds round\(number=1\)"),
        ("min(1)", "min takes 2 to 64 arguments, got 1"),
        ("9 ** 9 ** 9", "a power may have 4096 bits"),
        ("(2 ** 4000) * (2 ** 4000)", "a whole number may have 4096 bits"),
        ("round(5, -10 ** 9)", "round takes a whole number of digits up to 300"),
        ("round(5, 0.5)", "round takes a whole number of digits"),
        ("(-8) ** (1 / 3)", "must be a real number"),
        ("1 / zero", "it divides by zero"),
        ("1 % 0.0", "it divides by zero"),
        ("1e308 * 10", "must be finite"),
        ("1e999", "must be finite"),
        ("10.0 ** 400", "too large or undefined"),
        ("float(2 ** 2000)", "too large or undefined"),
        ("ab", "unknown variable 'ab'"),
        ("text + 1", "must be a number; text is 'x'"),
        ("1 +", "must be arithmetic"),
        ("import os", "must be arithmetic"),
        ("a = 1", "must be arithmetic"),
        ("1; 2", "must be arithmetic"),
        ("", "must be arithmetic"),
        ("\0", "must be arithmetic"),
        ("(" * 900, "must be arithmetic"),
        ("1" + "+1" * 600, "may have 1000 characters"),
    ],
)
def test_what_is_no_arithmetic_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        evaluate(expression, {**NAMES, "text": "x"})  # type: ignore[dict-item]


def test_nothing_is_run(tmp_path: object) -> None:
    touched: list[int] = []
    with pytest.raises(ExpressionError):
        evaluate("touched.append(1)", {})
    assert not touched


def test_variables_are_resolved_in_any_order() -> None:
    variables = {
        "last": "eval(middle * 2)",
        "middle": "eval(first + 0.5)",
        "first": 1,
        "params": "eval(names)",
        "names": ["re:.*", "b"],
        "text": "a eval(first)",
    }
    assert resolve_variables(variables) == {
        "last": 3.0,
        "middle": 1.5,
        "first": 1,
        "params": ["re:.*", "b"],
        "names": ["re:.*", "b"],
        "text": "a eval(first)",  # only whole strings are expressions here
    }


def test_a_circle_of_variables_is_named() -> None:
    with pytest.raises(ExpressionError, match="in a circle: a -> b -> c -> a"):
        resolve_variables({"a": "eval(b)", "b": "eval(c + 1)", "c": "eval(a)"})
    with pytest.raises(ExpressionError, match="in a circle: a -> a"):
        resolve_variables({"a": "eval(a)"})


def test_a_long_chain_of_variables_ends() -> None:
    chain = {f"v{index}": f"eval(v{index + 1})" for index in range(5000)}
    with pytest.raises(ExpressionError, match="100 deep"):
        resolve_variables({**chain, "v5000": 1})


def test_a_whole_expression_gives_lists_and_numbers() -> None:
    assert whole_value("eval(names)", {"names": ["a"]}) == ["a"]
    assert whole_value("eval( n * 2 )", {"n": 2}) == 4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("eval(n)", 3.0),
        ("eval(n * 2 - (1 + 1))", 4.0),
        ("layers.eval(n).mlp", "layers.3.mlp"),
        ("layers.eval(half + half).mlp", "layers.1.mlp"),
        ("eval(n) and eval(half)", "3 and 0.5"),
        ("eval(eval(n) + 1)", 4.0),
        ("plain", "plain"),
    ],
)
def test_expressions_inside_texts_are_replaced(text: str, value: str | float) -> None:
    assert substitute(text, {"n": 3, "half": 0.5}) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eval(n", "every eval\\( must be closed"),
        ("eval(__import__('os'))", "it holds __import__"),
        ("eval(loop)", "in a circle"),
        ("1eval(n)e999", "must be finite"),
    ],
)
def test_broken_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        substitute(text, {"n": 3, "loop": "eval(loop)+1"})
