"""One thing that is not as it should be."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be, in words for people.

    Args:
        kind: folder, database, stage, evaluation, cache, attempt, trial or leftover.
        path: what it is about.
        text: what is wrong, and what that means.
        fix: what repairing does; empty if nothing has to be done.
        deletes: repairing deletes something for good, so users are asked first.
        apply: fixes it.
    """

    kind: str
    path: Path
    text: str
    fix: str = ""
    deletes: bool = False
    apply: Callable[[], object] = field(default=lambda: None, repr=False, compare=False)
