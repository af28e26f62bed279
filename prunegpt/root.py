"""Where everything lies on disk, and how it gets there: whole or not at all.

A file or folder is written under a temporary name beside its place, synced, and renamed. Whoever reads a name that
exists reads something finished.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

DEFAULT_ROOT = "runs"
ROOT_VARIABLE = "PRUNEGPT_ROOT"


@dataclass(frozen=True)
class Root:
    """The folder that holds all sweeps, trials and stages; DESIGN of its inside is in the README, "What lies where"."""

    path: Path

    @classmethod
    def find(cls, given: Path | str | None = None) -> "Root":
        """`--root`, else PRUNEGPT_ROOT, else ./runs."""
        return cls(Path(given or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser().absolute())

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
        return (self.stage(key) / "stage.json").exists()

    def work(self, key: str) -> Path:
        """Checkpoints of a stage that is still being computed; removed when it is published."""
        return self.path / "work" / key

    def trial(self, sweep: str, trial: str) -> Path:
        return self.path / "trials" / sweep / trial

    def attempt(self, sweep: str, trial: str, number: int) -> Path:
        """The folder of one execution: trial.json, log.txt, points.jsonl, record.json."""
        return self.trial(sweep, trial) / f"attempt-{number}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
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


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole. NaN and infinity are refused: JSON has neither."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def publishing(destination: Path) -> Iterator[Path]:
    """A temporary folder that becomes `destination` when the block ends well, and vanishes when it does not.

    Two processes that publish the same destination are harmless: the second finds it there and drops its own copy.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(destination)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(folder) / name)
            _sync(Path(folder))
        try:
            os.rename(temporary, destination)
        except OSError:
            if not destination.exists():
                raise
        _sync(destination.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
