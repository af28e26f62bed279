"""Slurm jobs that outlived their coordinator: the next one ends them before anything runs in their place.

Every job is noted in ROOT/launch/slurm before it is submitted, so that it is found whatever instant its coordinator
died at, and whatever launcher the next run uses.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prunegpt.errors import LaunchError, listed
from prunegpt.launch.job import ABANDONED, Ended
from prunegpt.launch.log import LOG, append
from prunegpt.launch.slurm_queue import ask
from prunegpt.root import Root, read_json

_PATIENCE = 90.0  # seconds; Slurm kills 30 seconds after it has asked, by default
_LOOK = 0.5  # seconds between questions
_WORDS = "its coordinator ended before it did: the job was cancelled by the next one."


def notes_of(root: Root) -> Path:
    """The folder of the notes on jobs."""
    return root.path / "launch" / "slurm"


@dataclass(frozen=True)
class _Left:
    note: Path
    name: str  # of the job; no other job has it
    folder: Path | None  # of its attempt


def end_left(root: Root, *, patience: float = _PATIENCE, words: str = _WORDS, insist: bool = True) -> None:
    """Cancels the jobs that are noted in a root, and waits for their end. Nobody may be submitting any meanwhile.

    They are asked first, and write a checkpoint. One that was about to be submitted when its coordinator died, and
    gets into the queue later, ends itself when it begins.

    Args:
        patience: seconds that they get.
        words: for the log of each.
        insist: a scheduler that does not answer is asked again as long.

    Raises:
        LaunchError: they may still run.
    """
    left = {job.name: job for job in map(_read, sorted(notes_of(root).glob("*.json")))}
    for job in [job for job in left.values() if job.folder and Ended.read(job.folder)]:
        _forget(left.pop(job.name), "")
    if not left:
        return
    for job in left.values():
        if job.folder and job.folder.is_dir():
            (job.folder / ABANDONED).touch()
    end = time.monotonic() + patience
    told: set[str] = set()  # jobs that Slurm was asked to cancel
    while left:
        for name in [name for name in left if name not in told]:
            code, said = ask("scancel", "--me", f"--name={name}")
            if code:
                break
            told.add(name)
        else:
            code, said = ask("squeue", "--noheader", "--me", f"--name={','.join(left)}", "--format=%j")
        if code == 0:
            for name in set(left) - set(said.split()):
                _forget(left.pop(name), words)
        if left and (time.monotonic() > end or (code and not insist)):
            raise LaunchError(_refusal(root, left, "" if code == 0 else said.strip()))
        time.sleep(_LOOK if left else 0)


def _read(note: Path) -> _Left:
    try:
        known = read_json(note)
        return _Left(note, str(known["name"]), Path(known["folder"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Left(note, note.stem, None)


def _forget(job: _Left, words: str) -> None:
    if job.folder and job.folder.is_dir():
        append(job.folder / LOG, words)
    job.note.unlink(missing_ok=True)


def _refusal(root: Root, names: Iterable[str], problem: str) -> str:
    rule = "jobs of a coordinator that died must have ended before their trials are tried again;"
    if problem:
        return (
            f"{rule} {listed(names)} may still run, and Slurm cannot be queried: {problem} Run this where Slurm "
            f"answers. If its jobs are gone for good, delete the notes in {notes_of(root)}."
        )
    return f"{rule} {listed(names)} still run though they were cancelled. Wait until squeue lists them no more."
