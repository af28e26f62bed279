"""Looking at a root from the ground up: folders, database, what is published, attempts, and whether they agree."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from prunegpt.root import FOLDERS, Root, set_aside
from prunegpt.sweep.lock import coordinating, coordinator
from prunegpt.sweep.repair.agreement import disagreements
from prunegpt.sweep.repair.attempts import broken_attempts
from prunegpt.sweep.repair.database import broken_database
from prunegpt.sweep.repair.finding import Finding
from prunegpt.sweep.repair.folders import broken_folders
from prunegpt.sweep.repair.leftovers import leftovers

_PHASES: tuple[Callable[[Root], Iterator[Finding]], ...] = (
    broken_database,
    broken_folders,
    disagreements,  # before the attempts: their records are repaired from the database
    broken_attempts,
    leftovers,
)


def examine(root: Root, *, deep: bool = True) -> list[Finding]:
    """All that is wrong under a root, as far as it can be determined before anything is repaired.

    While a coordinator runs, leftovers and disagreements are its work in progress and are not looked for.

    Args:
        deep: read every published file and compare its content; otherwise sizes count.
    """
    found = list(broken_layout(root))
    if found or not root.path.is_dir():
        return found  # all else depends on it
    phases = _PHASES[:2] if coordinator(root) else _PHASES
    for phase in phases:
        found += broken_folders(root, deep=deep) if phase is broken_folders else phase(root)
    return found


def repair(root: Root, may: Callable[[Finding], bool]) -> list[tuple[Finding, bool]]:
    """Repairs a root, from the ground up; returns each finding and whether it was fixed.

    Args:
        may: asked before each fix.

    Raises:
        LaunchError: a coordinator runs.
    """
    if not root.path.is_dir():
        return [(finding, False) for finding in broken_layout(root)]
    with coordinating(root):
        wrong = list(broken_layout(root))
        old = [] if wrong else list(leftovers(root))  # what is set aside below is kept until the next time
        done = [_fixed(finding, may) for finding in wrong]
        if any(broken_layout(root)):
            return done  # all else depends on it
        for phase in _PHASES:
            found = old if phase is leftovers else list(phase(root))
            done += [_fixed(finding, may) for finding in found]
    return done


def _fixed(finding: Finding, may: Callable[[Finding], bool]) -> tuple[Finding, bool]:
    allowed = bool(finding.fix) and may(finding)
    if allowed:
        finding.apply()
    return finding, allowed


def broken_layout(root: Root) -> Iterator[Finding]:
    """The folders of a root, and the root itself, that are files, links to nothing, or closed to this account."""
    if found := _broken(root.path):
        yield replace(found, fix="", text=f"{found.text} Give another one with --root.")
        return
    for name in FOLDERS:
        if found := _broken(root.path / name):
            yield found


def _broken(place: Path) -> Finding | None:
    if place.is_symlink() and not place.exists():
        text = f"it must be a folder, got a link to {os.readlink(place)}, which is not there. Bring that back (is a"
        return Finding("folder", place, f"{text} disk mounted?), or remove the link.")
    if not place.exists():
        return None
    if not place.is_dir():
        aside = partial(set_aside, place)
        return Finding("folder", place, "it must be a folder, got a file.", "set the file aside", apply=aside)
    if not os.access(place, os.R_OK | os.X_OK):
        text = f"it must be readable; this account may not read it. Run: chmod u+rx {place}"
        return Finding("folder", place, text)
    return None
