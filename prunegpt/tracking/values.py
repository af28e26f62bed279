"""What others have logged, as every reader of JSON and every database takes it: values, numbers, steps."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prunegpt.points import Point
from prunegpt.records import leaves
from prunegpt.spec.read import MAX_DEPTH, MAX_INTEGER

_TOKENS = ("tokens", "num_input_tokens_seen", "train/num_input_tokens_seen")
_EPOCHS = ("epoch", "train/epoch")


def plain(value: Any, depth: int = 0) -> Any:
    """The same as bounded JSON.

    A whole number of more than 64 bits becomes a float, what is not finite the text that W&B writes for it, and what
    JSON has no kind for its text, without characters that UTF-8 or a database refuse.

    Raises:
        ValueError: it is nested deeper than `MAX_DEPTH` levels.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"values may be nested {MAX_DEPTH} levels deep; they are nested deeper. Flatten them.")
    if isinstance(value, Mapping):
        return {_text(str(key)): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) <= MAX_INTEGER else plain(float(str(value)))
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return _text(str(value))


def whole(value: Any) -> int | None:
    """A whole number from 0 on that a database's column holds, or None where this is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_INTEGER:
        return None
    return min(int(value), MAX_INTEGER)  # the float next to the largest integer is larger than that


def step_of(row: Mapping[str, Any]) -> int:
    """The number that W&B gives a row; 0 where it has none.

    Raises:
        ValueError: it is none that a database holds.
    """
    step = whole(row.get("_step") or 0)
    if step is None:
        raise ValueError(f"_step must be a whole number from 0 to {MAX_INTEGER}, got {row['_step']!r}.")
    return step


def points_of(row: Mapping[str, Any], step: int | None = None) -> Iterator[Point]:
    """The numbers of one row of a history by their own names, nested ones by dotted names, at the row's `_step`.

    Args:
        step: in place of the row's own.

    Raises:
        ValueError: it is at a step that is none.
    """
    flat = dict(numbers_of(row))
    at = step_of(row) if step is None else step
    tokens = next((found for name in _TOKENS if (found := whole(flat.get(name))) is not None), 0)
    stamp = flat.get("_timestamp")
    for name, value in flat.items():
        if not name.startswith("_"):
            yield Point(
                stage=0,
                step=at,
                epoch=_first(flat, _EPOCHS) or 0.0,
                name=name,
                value=value,
                time=time.time() if stamp is None else stamp,
                tokens=tokens,
            )


def numbers_of(node: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Every number of a mapping with its dotted name; None where it is not finite."""
    for name, value in leaves(node):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)
        elif value in ("NaN", "Infinity", "-Infinity"):
            yield name, None


def _first(flat: Mapping[str, float | None], names: Iterable[str]) -> float | None:
    return next((value for name in names if (value := flat.get(name)) is not None), None)


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
