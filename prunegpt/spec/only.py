"""The trials and searches that globs name, as `--only` has them."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from prunegpt.errors import Problem, SpecError, listed, nearest

Only = str | Sequence[str] | None  # one glob, or several; None: all
_LISTED = 8  # names in a message


def matches(name: str, only: Only) -> bool:
    """Whether one of the globs matches a name."""
    return not globs(only) or any(name == glob or fnmatchcase(name, glob) for glob in globs(only))


def refuse_unmatched(only: Only, names: Collection[str]) -> None:
    """Raises SpecError where a glob matches none of the names; the nearest are listed."""
    for glob in globs(only):
        if not any(matches(name, glob) for name in names):
            there = listed(nearest(glob, names), _LISTED)
            message = f"--only must match a trial or a search; {glob!r} matches none. There are: {there}."
            raise SpecError([Problem("", message)])


def globs(only: Only) -> Sequence[str]:
    """The globs one by one; none where all is meant."""
    return (only,) if isinstance(only, str) else only or ()
