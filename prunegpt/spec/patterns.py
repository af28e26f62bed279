"""The notation of sparsity patterns, read without torch: unstructured, N:M (N kept), [a, b] blocks."""

import re
from typing import Any, Literal, NamedTuple

FORMS = "unstructured, N:M (N of M consecutive inputs kept, such as 2:4), or [a, b] (blocks of a outputs by b inputs)"


class Notation(NamedTuple):
    """A pattern as it is written."""

    kind: Literal["unstructured", "N:M", "block"]
    first: int = 1  # N, the weights that are kept; or the outputs of a block
    second: int = 1  # M, the weights of a group; or the inputs of a block

    @property
    def name(self) -> str:
        """Its one spelling."""
        return {
            "unstructured": "unstructured",
            "N:M": f"{self.first}:{self.second}",
            "block": f"[{self.first}, {self.second}]",
        }[self.kind]

    @property
    def sparsity(self) -> float | None:
        """The sparsity it fixes: 1 - N/M for N:M, None for the others."""
        return 1.0 - self.first / self.second if self.kind == "N:M" else None


def read_pattern(text: str) -> Notation:
    """The pattern of a text: `unstructured`, `N:M`, `[a, b]` or `block:a,b`, blanks where you like.

    Raises:
        ValueError: it is none of these.
    """
    spelled = re.sub(r"\s+", "", text)
    if spelled == "unstructured":
        return Notation("unstructured")
    if match := re.fullmatch(r"(\d+):(\d+)", spelled):
        found = Notation("N:M", int(match[1]), int(match[2]))
        if not 0 < found.first < found.second:
            raise ValueError(f"pattern N:M keeps N of M, so 0 < N < M must hold, got {found.name}. Such as 2:4 or 1:4.")
        return found
    if match := re.fullmatch(r"\[(\d+),(\d+)\]|block:\[?(\d+),(\d+)\]?", spelled):
        rows, columns = (int(side) for side in match.groups() if side is not None)
        if rows < 1 or columns < 1:
            raise ValueError(f"block sides must be at least 1, got [{rows}, {columns}]. Such as [4, 4].")
        return Notation("block", rows, columns)
    raise ValueError(f"pattern must be {FORMS}, got {text!r}.")


def fixed_sparsity(pattern: str) -> float | None:
    """The sparsity a pattern fixes.

    Raises:
        ValueError: not a pattern.
    """
    return read_pattern(pattern).sparsity


def canonical_pattern(pattern: Any) -> Any:
    """One spelling a pattern: `[4, 4]` for `[4,4]` and for a YAML list of two; what is no text is left to the reader.

    Raises:
        ValueError: not a pattern.
    """
    if isinstance(pattern, (list, tuple)) and all(type(side) is int for side in pattern):
        pattern = str(list(pattern))
    return read_pattern(pattern).name if isinstance(pattern, str) else pattern
