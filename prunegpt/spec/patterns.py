"""The notation of sparsity patterns, checked without torch: unstructured, N:M (N kept), [a, b] blocks."""

import re
from typing import Any

FORMS = "unstructured, N:M (N of M consecutive inputs kept, such as 2:4), or [a, b] (blocks of a outputs by b inputs)"


def fixed_sparsity(pattern: str) -> float | None:
    """The sparsity a pattern fixes: 1 - N/M for N:M, None for the others.

    Raises:
        ValueError: not a pattern.
    """
    if pattern == "unstructured":
        return None
    if match := re.fullmatch(r"(\d+):(\d+)", pattern):
        kept, group = int(match[1]), int(match[2])
        if not 0 < kept < group:
            raise ValueError(
                f"pattern N:M keeps N of M, so 0 < N < M must hold, but got {pattern}. Such as 2:4 or 1:4."
            )
        return 1 - kept / group
    if match := re.fullmatch(r"\[\s*(\d+)\s*,\s*(\d+)\s*\]", pattern):
        if int(match[1]) * int(match[2]) < 1:
            raise ValueError(f"block sides must be at least 1, but got {pattern}.")
        return None
    raise ValueError(f"pattern must be {FORMS}, but got {pattern!r}.")


def canonical_pattern(pattern: Any) -> Any:
    """One spelling a pattern: `[4, 4]` for `[4,4]` and for a YAML list of two; what is no text is left to the reader.

    Raises:
        ValueError: not a pattern.
    """
    if isinstance(pattern, (list, tuple)) and all(type(side) is int for side in pattern):
        pattern = str(list(pattern))
    if not isinstance(pattern, str):
        return pattern
    spelled = re.sub(r"\s+", "", pattern).replace(",", ", ")
    fixed_sparsity(spelled)
    return spelled
