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
        mend: what mending does; empty where nothing has to be done.
        deletes: mending removes something for good, so that people are asked first.
        apply: mends it.
    """

    kind: str
    path: Path
    text: str
    mend: str = ""
    deletes: bool = False
    apply: Callable[[], object] = field(default=lambda: None, repr=False, compare=False)
