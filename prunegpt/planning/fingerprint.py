"""What stands for a file, a text or a library in a key: a hash of its content, never its name or date."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Container, MutableMapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegpt.root import Root, read_json, sha256, write_json

if TYPE_CHECKING:
    from pydantic import BaseModel

FORMAT = 2  # raise it when a stage of the same config would come out differently
# Variables by which accelerate, torch, cuBLAS and oneDNN compute in another way or precision than a plan says.
_DECIDING = (
    "ACCELERATE_*",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_EMULAT*",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "PYTORCH_MPS_FAST_MATH",
)
_MISSING = "missing"
_EXTRAS = (
    *("apollo-torch", "bitsandbytes", "galore-torch", "grokadamw", "kernels", "liger-kernel", "lomo-optim"),
    *("schedulefree", "torch-optimi", "torchao"),
)
SETTLED = 2_000_000_000  # nanoseconds
_ENTRIES = (4, 5)  # size, two times, number, hash; entries of earlier versions have no number


def digest(value: Any) -> str:
    """Twenty-four hexadecimal digits of the SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def decisive(part: "BaseModel", later: Container[str], *, without: Container[str] = ()) -> dict[str, Any]:
    """The fields of a part of a spec as they go into a key.

    Args:
        later: fields that came with a later version: at their defaults they are left out, so that keys stay.
        without: fields that do not decide, or are in the key in another form.
    """
    kind = type(part)
    return {
        name: value
        for name, value in part.model_dump().items()
        if name not in without and not (name in later and getattr(part, name) == kind.model_fields[name].default)
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that decide a result; a local build label such as +cpu is left out.

    Of NumPy the feature release: its generators, which draw calibration windows, stay the same within one (NEP 19).
    """
    found = {package: version_of(package) for package in ("torch", "transformers", "accelerate", "tokenizers")}
    return {**found, "numpy": ".".join(version_of("numpy").split(".")[:2])}


def undecided(environment: MutableMapping[str, str]) -> list[str]:
    """Takes out of an environment what would decide a result and is in no key; gives the names."""
    found = sorted(name for name in environment if any(fnmatchcase(name, pattern) for pattern in _DECIDING))
    for name in found:
        del environment[name]
    return found


def extra_versions() -> dict[str, str]:
    """Versions of what is installed of the libraries that some optimizers and kernels come from."""
    return {package: found for package in _EXTRAS if (found := version_of(package)) != _MISSING}


def machine() -> str:
    """What a measured time depends on and a spec does not say: the model of the CPU, its cores, and NVIDIA's GPUs."""
    files = Path("/proc/driver/nvidia/gpus").glob("*/information")
    cards = sorted({name for file in files if (name := _named(file, "Model"))})
    return ", ".join([processor(), f"{os.cpu_count()} cores", *cards])


def processor() -> str:
    """The model of the CPU, as the system names it."""
    return _named(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()


def _named(file: Path, field: str) -> str:
    """What a file of the system says in its first line `field: value`; empty where there is none."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


@cache
def version_of(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # here: the command line starts without it

    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return _MISSING


def stamp(path: Path) -> list[int]:
    """Size in bytes, times of modification and of change in nanoseconds, and the file's number (inode; 0 without one).

    Equal while nobody writes to a file or puts another one in its place.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class Files:
    """Hashes of files, remembered under the root, so that a model of many gigabytes is read once.

    A file counts as the same while its stamp stays the same: its size, its time of modification, its time of change
    (which no program can set back) and its number. What changed within the last two seconds is hashed each time: a file
    system whose clock is coarse would not show a further change.
    """

    def __init__(self, root: Root | None) -> None:
        self._path = root.path / "fingerprints.json" if root else None
        self._known: dict[str, Any] = {}
        self._fresh: set[str] = set()  # not to be remembered beyond this process
        self._said: dict[tuple[str, str, Callable[[Path], bool]], bool] = {}
        self._changed = False
        if self._path and self._path.exists():
            try:
                known = read_json(self._path)
                self._known = {path: entry for path, entry in known.items() if len(entry) in _ENTRIES}
            except (OSError, ValueError, AttributeError, TypeError):
                self._known = {}  # only a memory: damaged, it is made again

    def hash(self, path: Path) -> str:
        """SHA-256 of a file's content."""
        name, now = str(path.absolute()), stamp(path)
        known = self._known.get(name)
        if known and known[:-1] == now[: len(known) - 1] and name not in self._fresh:
            if len(known) == min(_ENTRIES):
                self._known[name], self._changed = [*now, known[-1]], True
            return str(known[-1])
        found = sha256(path)
        self._known[name] = [*now, found]
        self._changed = True
        if time.time_ns() - max(now[1:3]) < SETTLED:
            self._fresh.add(name)
        else:
            self._fresh.discard(name)
        return found

    def hash_all(self, paths: Sequence[Path]) -> list[str]:
        return [self.hash(path) for path in paths]

    def says(self, path: Path, question: Callable[[Path], bool]) -> bool:
        """The answer to a question about a file's content, which is opened for it once in this process."""
        key = (path.suffix, self.hash(path), question)
        if key not in self._said:
            self._said[key] = question(path)
        return self._said[key]

    def save(self) -> None:
        """Keeps what was hashed, where there is a root to keep it in."""
        if self._path and self._changed and self._path.parent.is_dir():
            with suppress(OSError):  # somebody else's root: nothing is kept
                write_json(self._path, {name: known for name, known in self._known.items() if name not in self._fresh})
