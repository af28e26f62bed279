"""Values as people read them. Full precision is for CSV and JSON."""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

ValueKind = Literal["text", "loss", "bits", "percent", "count", "seconds", "number", "bytes", "rate", "ratio"]
Value = float | int | str | bool | None

EMPTY = "–"
_LARGE = 1e5  # a perplexity from which powers of ten are written
_NOT_SHOWN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def text_of(value: Value, kind: ValueKind = "number", decimals: int | None = None) -> str:
    """A value in the notation of its kind; never "nan" or "inf".

    Args:
        decimals: of perplexities and bits; default 2 and 3.
    """
    if value is None:
        return EMPTY
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return EMPTY
    if kind == "loss":
        return together("loss", value, decimals=decimals)[0]
    if kind == "bits":
        return f"{value:.{3 if decimals is None else decimals}f}"
    if kind == "percent":
        return percent(value)
    if kind == "bytes":
        return f"{value / 1e6:,.1f} MB"
    if kind == "rate":
        return f"{round(value):,}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")
    if kind == "ratio":
        return f"{value:.{3 if decimals is None else decimals}f}"
    if kind == "count":
        return f"{round(value):,}"
    if kind == "seconds":
        return f"{value:.1f}" if value < 100 else f"{round(value):,}"
    return str(value) if isinstance(value, int) else f"{value:g}"


def percent(value: float) -> str:
    """A percentage: one decimal, two where one would make it a whole number that it is not.

    0 and 100 mean exactly that; values close to them get enough decimals to be distinguishable.
    """
    for digits in range(1, 17):
        text = f"{value:.{digits}f}"
        said = float(text)
        if said == value or not said.is_integer() or (digits > 1 and said not in (0, 100)):
            break
    return str(round(said)) if said.is_integer() else text


def together(kind: ValueKind, *values: float, decimals: int | None = None) -> list[str]:
    """The values of one cell, all in one notation; perplexities with two decimals, and a power of ten where large."""
    if kind != "loss":
        return [text_of(value, kind, decimals) for value in values]
    notation = "e" if any(abs(value) >= _LARGE for value in values) else "f"
    return [f"{value:.{2 if decimals is None else decimals}{notation}}" for value in values]


def probability(value: float) -> str:
    """A p-value."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def plain(value: Any) -> Value:
    """A config value as one cell holds it: scalars as they are, anything else as compact JSON."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        value = dict(value)
    return json.dumps(value, separators=(", ", ": "), default=str, ensure_ascii=False)


def is_number(value: Any) -> bool:
    """Whether an axis or a range can hold it: finite, no truth value, and no larger than a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def printed(value: float) -> str:
    """A published number as it would have been printed: 18.34, 30, 1.33e+09."""
    text = repr(float(value)).removesuffix(".0")
    return "0" if text == "-0" else text


def one_line(text: str) -> str:
    """Line breaks, control characters and lone surrogates become single spaces; none at the ends."""
    return _NOT_SHOWN.sub(" ", text).strip()


@dataclass(frozen=True)
class NumberStyle:
    """How all numbers of one column are written.

    Attributes:
        style: `fixed` as 0.50, `exponent` as 3.5e-4, `clock` as 3:20 or 1:05:09.
        decimals: digits behind the point.
    """

    style: Literal["fixed", "exponent", "clock"] = "fixed"
    decimals: int = 0


_FINEST = 4  # significant digits of a number in a column
_PLAIN_FROM, _PLAIN_TO = 1e-3, 1e6  # sizes between which numbers are written without an exponent


def number_style(kind: str, values: Iterable[Any]) -> NumberStyle:
    """How a column of these values is written, the same for each of them.

    Args:
        kind: of a field (`report/fields.py`); `percent` are shares between 0 and 1.
        values: those of the column; what is no number does not matter.
    """
    numbers = {float(value) for value in values if is_number(value)}
    sizes = [abs(value) for value in numbers if value]
    if kind == "seconds":
        return NumberStyle("clock") if any(value >= 60 for value in numbers) else NumberStyle(decimals=1)
    if kind in ("count", "loss"):
        return NumberStyle(decimals=2 if kind == "loss" else 0)
    if kind == "percent":
        texts = [percent(100 * value) for value in numbers]
        return NumberStyle(decimals=min(_FINEST, max([1, *(len(text.partition(".")[2]) for text in texts)])))
    if all(value.is_integer() for value in numbers) and max(sizes, default=0) < _PLAIN_TO:
        return NumberStyle()
    if min(sizes) < _PLAIN_FROM or max(sizes) >= _PLAIN_TO:
        digits = [len(f"{value:.{_FINEST - 1}e}".partition("e")[0].rstrip("0").rstrip(".")) - 2 for value in sizes]
        return NumberStyle("exponent", max(0, *digits))
    digits = [len(f"{float(f'{value:.{_FINEST}g}'):f}".rstrip("0").partition(".")[2]) for value in sizes]
    return NumberStyle(decimals=max(digits))


def written(value: Any, kind: str, how: NumberStyle) -> str:
    """A value of a column for people: numbers in the column's notation, and a sign where there is none."""
    if value is None or value in ("", [], ()):
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if not is_number(value) or kind == "text":
        return str(value)
    if kind == "percent":
        return f"{100 * value:.{how.decimals}f}%"
    if kind == "time":
        return datetime.fromtimestamp(value).strftime("%Y-%m-%d %H:%M")
    if how.style == "clock":
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    if how.style == "exponent" or (kind == "loss" and abs(value) >= _PLAIN_TO):
        return f"{value:.{how.decimals}e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return f"{value:{',' if kind in ('count', 'loss') else ''}.{how.decimals}f}{' s' if kind == 'seconds' else ''}"
