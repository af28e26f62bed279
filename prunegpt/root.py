"""The directory layout on disk, and atomic publishing.

A file or folder is written under a temporary name beside its place, synced, and renamed. Whoever reads a name that
exists reads something finished.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

DEFAULT_ROOT = "runs"
ROOT_VARIABLE = "PRUNEGPT_ROOT"
SEAL = "files.json"  # in a sealed folder: what was in it when it was published
REMOVED = "removed.json"  # in a stage whose model was removed to save space: size and SHA-256 of its files

# The folders directly under a root, each made when it is needed; docs/reference/root.md describes them.
FOLDERS = (
    "stages",
    "data",
    "statistics",
    "teachers",
    "tokenizers",
    "work",
    "trials",
    "control",
    "kept",
    "launch",
    "wandb",
    "figures",
)

_COMMAND = re.compile(r"`prunegpt ([^`]+)`")
# Commands that take no --root: they work on files that they are given. And that which lists what a spec may have.
_ROOTLESS = re.compile("init|trial run|trial serve|recipe|masks check|wandb agent|wandb upload-attempt|sweep fields$|-")
_CHUNK = 1 << 22  # bytes
_SMALL = 1 << 18  # bytes: what is not larger is read in less time than it takes to open a model


@dataclass(frozen=True)
class Root:
    """The folder that holds all sweeps, trials and stages; its layout is in docs/reference/root.md."""

    path: Path

    @classmethod
    def find(cls, given: Path | str | None = None) -> "Root":
        """`--root`, else PRUNEGPT_ROOT, else ./runs."""
        return cls(Path(given or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser().absolute())

    def command(self, *words: str, always: bool = False) -> str:
        """A line that runs `prunegpt` on this root: it names the root where that is not the usual one.

        Args:
            always: it names the root anyway, as who types it may have another usual one.
        """
        return self._naming(shlex.join(words), always)

    def located(self, message: str, *, always: bool = False) -> str:
        """A message whose commands, between backticks, run on this root."""
        return _COMMAND.sub(lambda found: f"`{self._naming(found[1], always)}`", message)

    def _naming(self, command: str, always: bool) -> str:
        usual = self.path == Root.find().path and not always
        named = usual or "--root" in command or _ROOTLESS.match(command)
        return f"prunegpt {command}{'' if named else f' --root {shlex.quote(str(self.path))}'}"

    @property
    def database(self) -> Path:
        return self.path / "prunegpt.db"

    @property
    def stages(self) -> Path:
        """Published stages, one folder a key."""
        return self.path / "stages"

    @property
    def data(self) -> Path:
        """Tokenised text, by fingerprint."""
        return self.path / "data"

    @property
    def statistics(self) -> Path:
        """Calibration statistics, by key."""
        return self.path / "statistics"

    @property
    def teachers(self) -> Path:
        """Cached top-k logits of teachers, by key."""
        return self.path / "teachers"

    def stage(self, key: str) -> Path:
        """The published folder of a stage: stage.json, model/, masks.safetensors, evaluations/."""
        return self.stages / key

    def evaluation(self, stage_key: str, evaluation_key: str) -> Path:
        """The folder of one evaluation of a stage: evaluation.json, windows.npy."""
        return self.stage(stage_key) / "evaluations" / evaluation_key

    def is_published(self, key: str) -> bool:
        """Whether a stage is there whole. One that lacks files, or whose files are cut, counts as not there.

        What a stage came to stays when its model is removed; it counts as not there once its model is wanted again.
        """
        return whole(self.stage(key), "stage.json") and not (self.lacks_model(key) and self._wanted(key).exists())

    def lacks_model(self, key: str) -> bool:
        """Whether the model of a stage was removed to save space."""
        return (self.stage(key) / REMOVED).exists()

    def want_model(self, key: str) -> None:
        """Has the model of a stage computed again by the next trial that comes through it, where it was removed."""
        if self.lacks_model(key):
            self._wanted(key).parent.mkdir(parents=True, exist_ok=True)
            self._wanted(key).touch()

    def kept(self, key: str) -> Path:
        """Marks a model that was asked for after it had been removed: no run removes it again, `gc` may."""
        return self.path / "kept" / key

    def _wanted(self, key: str) -> Path:
        return self.work(key) / "wanted"

    def is_measured(self, stage_key: str, evaluation_key: str) -> bool:
        """Whether an evaluation of a stage is there whole."""
        return whole(self.evaluation(stage_key, evaluation_key), "evaluation.json")

    def is_computed(self, key: str, evaluations: Iterable[str]) -> bool:
        """Whether a stage and these evaluations of it are there whole."""
        return self.is_published(key) and all(self.is_measured(key, one) for one in evaluations)

    def work(self, key: str) -> Path:
        """Checkpoints of a stage that is still being computed; removed when it is published."""
        return self.path / "work" / key

    def trial(self, sweep: str, trial: str) -> Path:
        return self.path / "trials" / sweep / trial

    def attempt(self, sweep: str, trial: str, number: int) -> Path:
        """The folder of one execution: trial.json, log.txt, points.jsonl, record.json."""
        return self.trial(sweep, trial) / f"attempt-{number}"

    def now(self) -> float:
        """Seconds since the epoch by the clock that stamps files here, which need not be that of this machine."""
        self.path.mkdir(parents=True, exist_ok=True)
        probe = _beside(self.path / "clock")
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole: temporary name, fsync, rename, fsync of the folder. A file that was there keeps its mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            with suppress(FileNotFoundError):
                os.chmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _beside(path: Path) -> Path:
    """A name that no other writer of that path has, in this process or another."""
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON in UTF-8, or nested too deep to be anybody's.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole. NaN and infinity are refused: JSON has neither."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def publishing(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `destination` when the block ends well, and vanishes when it does not.

    Two processes that publish the same destination are harmless: the second finds it there and drops its own copy. A
    sealed folder that is damaged is set aside first.

    Args:
        replace: take the place of what is there, which is deleted once the new folder is there; the caller has
            checked what that is.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(destination)
    temporary.mkdir()
    try:
        yield temporary
        shared = temporary.stat().st_mode & 0o666  # as the umask has it: safetensors writes files for their owner alone
        for folder, _, files in os.walk(temporary):
            for name in files:
                os.chmod(Path(folder) / name, shared)
                _sync(Path(folder) / name)
            _sync(Path(folder))
        try:
            os.rename(temporary, destination)
        except OSError:
            if not destination.exists():
                raise
            if replace:
                retired = _beside(destination)
                os.rename(destination, retired)
                try:
                    os.rename(temporary, destination)
                except OSError:
                    os.rename(retired, destination)
                    raise
                shutil.rmtree(retired, ignore_errors=True)
            elif damage(destination, deep=True):
                set_aside(destination)
                os.rename(temporary, destination)
        _sync(destination.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was when its folder was sealed."""

    file: str  # below the folder
    what: str  # missing, cut, changed, unreadable, misplaced


def seal(folder: Path) -> None:
    """Writes files.json: size and SHA-256 of every file in a folder that is about to be published."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    content = {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256(path)] for path in files}
    write_json(folder / SEAL, content)


def sealed(folder: Path) -> dict[str, tuple[int, str]] | None:
    """Size and SHA-256 by file, as they were when the folder was sealed; None where it never was.

    Raises:
        ValueError: files.json is not what `seal` writes.
    """
    try:
        content = read_json(folder / SEAL)
    except FileNotFoundError:
        return None
    try:
        return {str(name): (int(size), str(digest)) for name, (size, digest) in content.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{folder / SEAL} must map files to size and hash; it does not.") from error


def whole(folder: Path, file: str = SEAL, *, deep: bool = False) -> bool:
    """Whether a published folder is there, with one file of it at least, and not damaged; see `damage`."""
    return (folder / file).exists() and not damage(folder, deep=deep)


def read_sealed(path: Path) -> str:
    """The text of a file in a folder, as it was when the folder was sealed; of one that never was, as it is.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not as it was.
    """
    content = path.read_bytes()
    known = (sealed(path.parent) or {}).get(path.name)
    if known and hashlib.sha256(content).hexdigest() != known[1]:
        raise ValueError(f"{path} was changed after it was published")
    return content.decode()


def damage(folder: Path, *, deep: bool = False, content: Callable[[Path], str] | None = None) -> list[Damage]:
    """What is wrong with a sealed folder; nothing is known to be wrong with one that was never sealed.

    Args:
        deep: compare the content of large files too, and not only their sizes; that of small ones always is.
        content: gives the SHA-256 of a large file; default: by reading it.
    """
    try:
        expected = sealed(folder)
    except (OSError, ValueError):
        return [Damage(SEAL, "unreadable")]
    found = [
        (name, _damage(folder / name, *known, content or sha256 if deep else None))
        for name, known in (expected or {}).items()
    ]
    wrong = [Damage(name, what) for name, what in found if what]
    return wrong or _misplaced(folder)


def _misplaced(folder: Path) -> list[Damage]:
    """The difference between a stage's or evaluation's record and its path, if it was copied or renamed."""
    for name, places in (
        ("stage.json", {"key": folder.name}),
        ("evaluation.json", {"key": folder.name, "stage": folder.parent.parent.name}),
    ):
        try:
            says = read_json(folder / name)
        except (OSError, ValueError):
            continue  # not one, or reported elsewhere
        said = {field: says.get(field) for field in places} if isinstance(says, dict) else {}
        if any(isinstance(key, str) and key not in ("", places[field]) for field, key in said.items()):
            return [Damage(name, "misplaced")]
    return []


def _damage(path: Path, size: int, digest: str, of_large: Callable[[Path], str] | None) -> str:
    try:
        if path.stat().st_size != size:
            return "cut" if path.stat().st_size < size else "changed"
        read = sha256 if size <= _SMALL else of_large
        return "changed" if read and read(path) != digest else ""
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "unreadable"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def set_aside(path: Path) -> Path:
    """Gives something damaged a name beside its own that nobody looks for; it is not deleted."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}.damaged")
    os.rename(path, aside)
    return aside
