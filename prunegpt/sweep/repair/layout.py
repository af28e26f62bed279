"""What is in place of a root's folders: every command would fail on it, or find nothing."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from prunegpt.root import FOLDERS, Root, set_aside
from prunegpt.sweep.repair.finding import Finding


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
