"""What crashes leave: temporary files and folders, checkpoints of what is published, locks; and what was set aside."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prunegpt.root import Root
from prunegpt.sweep.repair.finding import Finding

SETTLED = 600.0  # seconds; what is younger may still be written to by a command that is no coordinator
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{32}\.(tmp|damaged)$")
_DEEP = 6  # levels below the root at which anything is published


def leftovers(root: Root) -> Iterator[Finding]:
    """Temporary names that nobody writes to any more, what was set aside, and work that is done."""
    now = _now(root)
    for path in _temporary(root.path):
        if path.name.endswith(".damaged"):
            yield _delete(path, f"it was damaged and set aside, and takes {_size(path)}.")
        elif abs(now - path.lstat().st_mtime) > SETTLED:
            yield _delete(path, "it was being written when its process ended; nobody reads it.")
    work = root.path / "work"
    for folder in sorted(work.iterdir()) if work.is_dir() else []:
        if folder.is_dir() and root.is_published(folder.name):
            yield _delete(folder, f"checkpoints of a stage that is published since; they take {_size(folder)}.")


def _now(root: Root) -> float:
    try:
        return root.now()
    except OSError:  # nothing can be written, and so nothing deleted
        return time.time()


def _temporary(folder: Path, depth: int = 0) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = sorted((Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries)
    for path, is_folder in found:
        if _TEMPORARY.match(path.name):
            yield path
        elif is_folder and depth < _DEEP:
            yield from _temporary(path, depth + 1)


def _delete(path: Path, text: str) -> Finding:
    return Finding("leftover", path, text, "delete it", deletes=True, apply=partial(_remove, path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 2**20:.1f} MiB"
