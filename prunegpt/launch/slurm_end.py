"""What the end of a Slurm job means for an attempt."""

import signal

from prunegpt.launch.base import Exited, Reason
from prunegpt.launch.job import Ended

_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "RECONFIG_FAIL",
    "REVOKED",
    "SPECIAL_EXIT",
    "TIMEOUT",
}
_REASONS: dict[str, Reason] = {
    "PREEMPTED": "preempted",
    "TIMEOUT": "time-limit",
    "DEADLINE": "time-limit",
    "OUT_OF_MEMORY": "out-of-memory",
    "FAILED": "failed",
    "SPECIAL_EXIT": "failed",
    "COMPLETED": "lost",  # without an exit.json: its node's file system failed it
}


def is_over(state: str) -> bool:
    """Whether a job in this state runs no more; a job that is not known to Slurm does not."""
    return not state or state in _OVER


def end_of(state: str, ended: Ended | None, *, asked: bool) -> Exited:
    """How an attempt ended.

    Args:
        state: of the job in Slurm's words; empty where Slurm does not know it any more.
        ended: how the trial's process ended, where the job could still write it down.
        asked: whether we asked it to end.
    """
    code = ended.code if ended else None
    number = ended.signal if ended else None
    if ended and code == 0:
        return Exited("cancelled" if asked else "ended", 0)
    if asked:
        return Exited("cancelled", code, number)
    if ended and ended.heard and state != "CANCELLED":  # preempted within its grace time, or its time was nearly over
        return Exited("preempted", code, number)
    if state in ("PREEMPTED", "OUT_OF_MEMORY") or (ended is None and state in _REASONS):
        return Exited(_REASONS[state], code, number)
    if ended is None:
        return Exited("signal", signal=signal.SIGTERM) if state == "CANCELLED" else Exited("lost")
    return Exited("signal", None, number) if number is not None else Exited("failed", code)
