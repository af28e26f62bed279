"""What others have logged, as every reader of JSON and every database takes it."""

import math
from collections.abc import Mapping
from typing import Any

from prunegpt.spec.read import MAX_DEPTH, MAX_INTEGER


def plain(value: Any, depth: int = 0) -> Any:
    """The same as bounded JSON.

    A whole number of more than 64 bits becomes a float, what is not finite the text that W&B writes for it, and what
    JSON has no kind for its text, without characters that UTF-8 or a database refuse.

    Raises:
        ValueError: it is nested deeper than `MAX_DEPTH` levels.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"values may be nested {MAX_DEPTH} levels deep, but are nested deeper. Flatten them.")
    if isinstance(value, Mapping):
        return {_text(str(key)): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) <= MAX_INTEGER else plain(float(str(value)))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _not_finite(value)
    return _text(str(value))


def whole(value: Any) -> int | None:
    """A whole number from 0 on that a database's column holds, or None where this is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_INTEGER:
        return None
    return min(int(value), MAX_INTEGER)  # the float next to the largest integer is larger than that


def _not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
