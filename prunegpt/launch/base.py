"""What a launcher is: three calls, and how many attempts it takes at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

Reason = Literal[
    "ended", "failed", "signal", "cancelled", "lost", "preempted", "time-limit", "out-of-memory", "refused"
]


@dataclass(frozen=True)
class Exited:
    """An ended attempt. Its result is in its record.json, if it left one.

    Args:
        reason: `ended`: it reported so; `failed`: it reported a failure, or its process ended with another code
            than 0; `signal`: its process was killed; `cancelled`: we asked for it; `preempted`: the scheduler asked it
            to write a checkpoint and end, or took its place away: a record that says `stopped` means this; `time-limit`
            and `out-of-memory`: the scheduler killed it for that; `lost`: nobody knows, such as after its node is gone;
            `refused`: the launcher or its scheduler would not take it, or not say any more what became of it.
        code: exit code of the process, where that is known.
        signal: number of the signal that ended the process.
        words: the message of the refusal.
    """

    reason: Reason
    code: int | None = None
    signal: int | None = None
    words: str = ""


def queues(launcher: "Launcher") -> bool:
    """Whether an attempt may wait elsewhere before it begins. A launcher without `queues` is assumed to."""
    return bool(getattr(launcher, "queues", True))


@runtime_checkable
class Launcher(Protocol):
    """Runs `prunegpt trial run FOLDER`, or what amounts to it, somewhere that sees the folder.

    Whatever the attempt's process writes, or its scheduler has to say of its end, is in FOLDER/log.txt once `poll`
    gives an Exited. A launcher is used from one thread, which must outlive the attempts.

    Whatever a call raises is about the attempt it was made for, and harms no other: see `sweep.patience`. Where the
    same may be had later, it raises what `refusal.passes` knows, such as TimeoutError or an OSError with EAGAIN.
    """

    @property
    def slots(self) -> int:
        """How many attempts may be submitted and not ended at a time."""
        ...

    def submit(self, folder: Path) -> str:
        """Starts the attempt in a folder with trial.json; returns a handle.

        Raises:
            LaunchError: there is no free slot, or the attempt cannot be started.
        """
        ...

    def poll(self, handle: str) -> Exited | None:
        """None while it runs. Asked again after the end, it gives the same answer. Does not wait.

        Raises:
            LaunchError: this launcher gave no such handle.
        """
        ...

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        """Asks the attempt to write a checkpoint and end (SIGTERM); `kill` ends it at once. Does not wait."""
        ...

    def close(self) -> None:
        """Ends what still runs and gives everything back."""
        ...
