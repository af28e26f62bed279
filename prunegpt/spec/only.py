"""What of a plan is run, and how: the trials and searches that globs name, as `--only` has them, and by what."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from prunegpt.errors import Problem, SpecError, listed, nearest

Only = str | Sequence[str] | None  # one glob, or several; None: all
_LISTED = 8  # names in a message


class RunOptions(NamedTuple):
    """How a run is asked for, beside what the spec says."""

    only: Only = None
    launcher: str | None = None  # the kind, in place of the spec's
    slots: int | None = None  # concurrent trials, in place of the spec's
    priority: int = 0  # in the queue while another sweep of the root runs; higher goes first
    wait: bool = True  # for that sweep's end; without it, its being there is an error


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
