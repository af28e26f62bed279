"""Filters of trials: expressions over their fields, in Python's notation, that are read and never run as code.

    perplexity < 40 and method == "wanda"
    0.5 <= sparsity < 0.9 and "baseline" in tags
    not state in ["failed", "diverged"]
    `val/acc` > 0.9 or wanda                   a bare word is searched in names

The dashboard, `prunegpt sweep status --where` and `Sweep.frame(where=...)` share them; see docs/how-to/filters.md.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prunegpt.errors import PruneGPTError
from prunegpt.records import TrialResult
from prunegpt.report.field import TrialField, display_name
from prunegpt.report.fields import FieldError, TrialFields
from prunegpt.spec.arithmetic import MAX_LENGTH, OPERATORS, ExpressionError, applied, short

Predicate = Callable[[TrialResult], bool]

_DEEPEST = 40  # expressions inside one another
_WORDS = {"and", "or", "not", "in", "is", "None", "True", "False"}
_SIGNS = re.compile(r"[<>\"'`()\[\]!]|==")  # that names do not hold
_JOINED = re.compile(r"\b(?:and|or|not|in|is)\b")
_PIECE = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|`(?P<quoted>[^`]+)`|(?P<number>\d[\w.]*(?:(?<=[eE])[+-]\d+)?)"""
    r"""|(?P<word>[^\W\d]\w*(?:[./:@+-]\w+)*)"""
)
_SIGN = re.compile(r"[/:@+-]")  # in names such as val/acc, and in arithmetic and slices
_ASSIGNED = re.compile(r"([^\W\d][\w.]*)\s*=(?!=)")
_ORDERS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_HINTS = {
    ast.Attribute: "attributes are not part of a filter: fields are named by their path",
    ast.Call: "functions are not part of a filter",
    ast.BitAnd: "write `and` between conditions, not &",
    ast.BitOr: "write `or` between conditions, not |",
    ast.Invert: "write `not` before a condition, not ~",
}
_GRAMMAR = "fields, numbers, quoted text, lists, == != < <= > >=, in, is None, and, or, not, + - * / // ** %"


class QueryError(PruneGPTError, ValueError):
    """A filter that is not understood."""


class _Operand(NamedTuple):
    """One side of a comparison."""

    of: Callable[[TrialResult], Any]
    field: TrialField | None = None
    constant: bool = False  # whether it is the same of every trial

    @property
    def is_none(self) -> bool:
        """Whether None is written there."""
        return self.constant and self.of(None) is None  # type: ignore[arg-type]  # a constant asks no trial


def where(text: str, fields: TrialFields) -> Predicate:
    """What a filter means, as a function of a trial. A text without operators is searched in names.

    A comparison with a value that a trial does not have is false, but for `!=` and `not in`.

    Raises:
        QueryError: it is not understood; the message says where, and what is near.
    """
    text = re.sub(r"\s", " ", text).strip()
    if len(text) > MAX_LENGTH:
        raise QueryError(f"a filter may have {MAX_LENGTH:,} characters, but has {len(text):,}.")
    if not text:
        return lambda trial: True
    assigned = _ASSIGNED.match(text)
    if assigned and _is_field(assigned[1], fields):
        raise QueryError(f"a value is compared with ==, got {short(text)}. Did you mean {assigned[1]} == ...?")
    if not _SIGNS.search(text) and not _JOINED.search(text):
        return _flag(text, fields) or _searched(text, fields)
    reader = _Reader(text, fields)
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that text has
            tree = ast.parse(reader.prepared, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if not _SIGNS.search(text):
            return _searched(text, fields)  # words, such as "not yet"
        place = (isinstance(error, SyntaxError) and error.offset) or len(reader.prepared)  # 0: its end
        raise reader.problem(f"this is not understood; a filter holds {_GRAMMAR}", place - 1) from error
    return reader.condition(tree)


def selected(trials: Sequence[TrialResult], text: str, fields: TrialFields | None = None) -> list[TrialResult]:
    """The trials that a filter matches.

    Args:
        fields: of the trials, where they are there already.

    Raises:
        QueryError: it is not understood.
    """
    matches = where(text, fields or TrialFields(trials))
    return [trial for trial in trials if matches(trial)]


def equals(field: TrialField, value: Any) -> str:
    """The filter of those trials that have a value in a field."""
    name = field.name if re.fullmatch(r"[^\W\d]\w*(?:\.\w+)*", field.name) else f"`{field.name}`"
    if value is None:
        return f"{name} is None"
    return f"{name} == {list(value) if isinstance(value, tuple) else value!r}"


def _is_field(name: str, fields: TrialFields) -> bool:
    try:
        fields.find(name)
    except FieldError:
        return False
    return True


def _flag(text: str, fields: TrialFields) -> Predicate | None:
    """The flag that is called so."""
    found = fields.fixed.get(text)
    return (lambda trial: bool(found.of(trial))) if found and found.kind == "flag" else None


def _searched(text: str, fields: TrialFields) -> Predicate:
    """The trials that have a text in a name, label, state, tag, note or swept value."""
    wanted = text.casefold()
    others = [fields.fixed[key] for key in ("tags", "note")]

    def matches(trial: TrialResult) -> bool:
        said = (trial.name, display_name(trial), trial.label, trial.state, *trial.swept.values())
        return any(wanted in str(part).casefold() for part in (*said, *(field.of(trial) or "" for field in others)))

    return matches


class _Reader:
    """Reads one filter.

    Names are put behind placeholders first, for paths such as stages.1.prune.sparsity and val/acc are none in Python.
    """

    def __init__(self, text: str, fields: TrialFields) -> None:
        self.text = text
        self.fields = fields
        self.named: dict[str, str] = {}  # placeholder -> what is written there
        self._moved: list[tuple[int, int]] = []  # where a piece begins in the prepared text, and in the text
        self.prepared = self._prepare()

    def _prepare(self) -> str:
        done, at, size = [], 0, 0

        def put(piece: str, begin: int) -> None:
            nonlocal size
            self._moved.append((size, begin))
            done.append(piece)
            size += len(piece)

        while found := _PIECE.search(self.text, at):
            put(self.text[at : found.start()], at)
            at = found.end()
            name = found["quoted"] or found["word"]
            if found["word"]:
                name = self._longest(found["word"])
                at = found.start() + len(name)
            if name is None or name in _WORDS:
                put(self.text[found.start() : at], found.start())
                continue
            placeholder = f"_{len(self.named)}_"
            self.named[placeholder] = name
            put(placeholder, found.start())
        put(self.text[at:], at)
        return "".join(done)

    def _longest(self, word: str) -> str:
        """As much of a word as names a field, for the rest may be subtracted from it; else all of it."""
        if not _SIGN.search(word):
            return word
        ends = [len(word), *(sign.start() for sign in reversed(list(_SIGN.finditer(word))))]
        return next((word[:end] for end in ends if _is_field(word[:end], self.fields)), word)

    def problem(self, message: str, place: ast.expr | int = 0) -> QueryError:
        """An error with the position in the text, counted from 1."""
        if isinstance(place, ast.expr):
            place = len(self.prepared.encode()[: place.col_offset].decode())
        before = [pair for pair in self._moved if pair[0] <= place]
        new, old = before[-1] if before else (0, 0)
        position = min(old + place - new, len(self.text) - 1) + 1
        end = "" if message.endswith(("?", ".")) else "."
        return QueryError(f"position {position} of the filter ({short(self.text[position - 1 :])}): {message}{end}")

    # Conditions

    def condition(self, node: ast.expr, depth: int = 0) -> Predicate:
        if depth > _DEEPEST:
            raise self.problem(f"a filter may be {_DEEPEST} expressions deep, but is deeper", node)
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = [self.condition(value, depth + 1) for value in values]
                join = all if isinstance(op, ast.And) else any
                return lambda trial: join(part(trial) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                part = self.condition(operand, depth + 1)
                return lambda trial: not part(trial)
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._compared(left, ops, others, depth)
            case ast.Constant(value=str(text)):
                return _searched(text, self.fields)
            case ast.Constant(value=bool(value)):
                return lambda trial: value
            case ast.Name(id=placeholder):
                return self._bare(self.named[placeholder], node)
        raise self._refused(node, "a condition is a comparison")

    def _bare(self, name: str, node: ast.expr) -> Predicate:
        """A flag; a word that no field has is searched in names."""
        try:
            field = self.fields.find(name)
        except FieldError:
            return _searched(name, self.fields)
        if field.kind != "flag":
            raise self.problem(f"the field {name} must be compared, as in {name} is not None", node)
        return lambda trial: bool(field.of(trial))

    def _compared(self, left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr], depth: int) -> Predicate:
        nodes = [left, *others]
        sides = [self._operand(one, depth + 1) for one in nodes]
        tests = []
        for place, op in enumerate(ops):
            one, two = sides[place : place + 2]
            self._check(op, one, two, nodes[place + 1])
            self._check(op, two, one, nodes[place])
            if isinstance(op, (ast.Is, ast.IsNot)) and not two.is_none:
                raise self.problem("`is` asks for None alone; values are compared with ==", nodes[place + 1])
            tests.append((one.of, _test(op, one.is_none or two.is_none), two.of))
        return lambda trial: all(test(one(trial), two(trial)) for one, test, two in tests)

    def _check(self, op: ast.cmpop, one: _Operand, two: _Operand, node: ast.expr) -> None:
        """Refuses what can be no trial's: a number as text, a share above 1."""
        if one.field is None or not two.constant or not one.field.numeric or isinstance(op, (ast.In, ast.NotIn)):
            return
        value = two.of(None)  # type: ignore[arg-type]  # a constant asks no trial
        if isinstance(value, str):
            raise self.problem(f"{one.field.name} is a number, but is compared with the text {short(value)!r}", node)
        if one.field.kind == "percent" and isinstance(value, int | float) and value > 1:
            hint = f". Did you mean {value / 100:g}?" if value <= 100 else ""
            raise self.problem(f"{one.field.name} is between 0 and 1, but is compared with {value:g}{hint}", node)

    # What is compared

    def _operand(self, node: ast.expr, depth: int) -> _Operand:
        if depth > _DEEPEST:
            raise self.problem(f"a filter may be {_DEEPEST} expressions deep, but is deeper", node)
        match node:
            case ast.Constant(value=str() | bool() | int() | float() | None as value):
                if type(value) is int:
                    self._arithmetic(operator.pos, node, value)  # of bounded size
                return _Operand(lambda trial: value, constant=True)
            case ast.Name(id=placeholder):
                return self._field(self.named[placeholder], node)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                found = [self._operand(item, depth + 1) for item in items]
                if not all(item.constant for item in found):
                    raise self.problem("a list holds numbers and quoted text", node)
                values = [item.of(None) for item in found]  # type: ignore[arg-type]  # constants ask no trial
                return _Operand(lambda trial: values, constant=True)
            case ast.UnaryOp(op=op, operand=inner) if type(op) in OPERATORS:
                return self._computed(node, op, [self._operand(inner, depth + 1)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return self._computed(node, op, [self._operand(left, depth + 1), self._operand(right, depth + 1)])
        raise self._refused(node, "it cannot be compared")

    def _field(self, name: str, node: ast.expr) -> _Operand:
        try:
            field = self.fields.find(name)
        except FieldError as error:
            raise self.problem(f'{error} Text is put in quotes: "{name}"', node) from error
        return _Operand(field.of, field)

    def _computed(self, node: ast.expr, op: ast.operator | ast.unaryop, sides: list[_Operand]) -> _Operand:
        function = OPERATORS[type(op)]
        if all(side.constant for side in sides):
            value = self._arithmetic(function, node, *(side.of(None) for side in sides))  # type: ignore[arg-type]
            return _Operand(lambda trial: value, constant=True)

        def of(trial: TrialResult) -> Any:
            values = [side.of(trial) for side in sides]
            if not all(_is_number(value) for value in values):
                return None
            try:
                return applied(function, *values)
            except ExpressionError:  # it has none: divided by zero, or too large
                return None

        return _Operand(of)

    def _arithmetic(self, function: Callable[..., Any], node: ast.expr, *values: Any) -> Any:
        if not all(_is_number(value) for value in values):
            raise self.problem("arithmetic takes numbers", node)
        try:
            return applied(function, *values)
        except ExpressionError as error:
            raise self.problem(str(error), node) from error

    def _refused(self, node: ast.expr, rule: str) -> QueryError:
        kinds = [type(node), type(getattr(node, "op", None))]
        return self.problem(next((hint for kind, hint in _HINTS.items() if kind in kinds), rule), node)


def _test(op: ast.cmpop, beside_none: bool) -> Callable[[Any, Any], bool]:
    """What an operator asks of two values; beside a written None, == asks whether there is a value."""
    match op:
        case ast.Eq() | ast.Is() if beside_none:
            return lambda one, two: one is two
        case ast.NotEq() | ast.IsNot() if beside_none:
            return lambda one, two: one is not two
        case ast.Eq():
            return _same
        case ast.NotEq():
            return lambda one, two: not _same(one, two)
        case ast.In():
            return _held
        case ast.NotIn():
            return lambda one, two: not _held(one, two)
    order = _ORDERS[type(op)]
    return lambda one, two: _ordered(one, two) and order(one, two)


def _same(one: Any, two: Any) -> bool:
    """Whether values are equal; a truth value is no number, and nothing equals what is not there."""
    if one is None or two is None:
        return False
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    return isinstance(one, bool) == isinstance(two, bool) and bool(one == two)


def _held(one: Any, two: Any) -> bool:
    """Whether a list holds a value, or a text another."""
    if isinstance(two, list | tuple):
        return any(_same(one, value) or (one is None and value is None) for value in two)
    return isinstance(one, str) and isinstance(two, str) and one in two


def _ordered(one: Any, two: Any) -> bool:
    return (_is_number(one) and _is_number(two)) or (isinstance(one, str) and isinstance(two, str))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
