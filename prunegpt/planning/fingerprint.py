"""What stands for a file, a text or a library in a key: a hash of its content, never its name or date."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prunegpt.root import Root, write_json

FORMAT = 1  # raise it when a stage of the same config would come out differently
_CHUNK = 1 << 22


def digest(value: Any) -> str:
    """Twenty-four hexadecimal digits of the SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def versions() -> dict[str, str]:
    """Versions of the libraries that decide a result; a local build label such as +cpu is left out."""
    found = {}
    for package in ("torch", "transformers"):
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "missing"
    return found


class Files:
    """Hashes of files, remembered under the root by path, size and time of change, so that a model is read once."""

    def __init__(self, root: Root | None) -> None:
        self._path = root.path / "fingerprints.json" if root else None
        self._known: dict[str, Any] = {}
        self._changed = False
        if self._path and self._path.exists():
            try:
                self._known = json.loads(self._path.read_text(encoding="utf-8"))
            except ValueError:
                self._known = {}

    def hash(self, path: Path) -> str:
        """SHA-256 of a file's content."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._known.get(str(path))
        if known and known[:2] == stamp:
            return str(known[2])
        hasher = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
        self._known[str(path)] = [*stamp, hasher.hexdigest()]
        self._changed = True
        return hasher.hexdigest()

    def hash_all(self, paths: Sequence[Path]) -> list[str]:
        return [self.hash(path) for path in paths]

    def save(self) -> None:
        """Keeps what was hashed, where there is a root to keep it in."""
        if self._path and self._changed and self._path.parent.is_dir():
            write_json(self._path, self._known)


def subset(config: Mapping[str, Any], without: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in without}
