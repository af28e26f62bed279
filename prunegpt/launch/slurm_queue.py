"""What Slurm says of our jobs, and what their end means for an attempt.

Never waits: a query is a process that is polled later, and may fail.
"""

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from typing import IO

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
_SLOWEST = 60.0  # seconds between questions to a scheduler that does not answer
_WAIT = 20.0  # seconds that a command gets which blocks us
_UNKNOWN = "Invalid job id"  # what squeue says where it has forgotten all the jobs it was asked about


class Question:
    """A command whose answer is fetched when it is there."""

    def __init__(self, command: Sequence[str]) -> None:
        self.asked = time.monotonic()
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def answer(self, wait: float | None = 0.0) -> tuple[int, str] | None:
        """Exit code and output; None where it is still running after `wait` seconds."""
        try:
            code = self._process.wait(wait)
        except subprocess.TimeoutExpired:
            return None
        self._output.seek(0)
        text = self._output.read().decode("utf-8", errors="replace")
        self._output.close()
        return code, text

    def drop(self) -> None:
        """Ends it unanswered."""
        self._process.kill()
        self._process.wait()
        self._output.close()


def ask(*words: str) -> tuple[int, str]:
    """Runs a command to its end, or for 20 seconds; code and output."""
    try:
        question = Question(words)
    except OSError as error:
        return 127, str(error)
    answer = question.answer(_WAIT)
    if answer is None:
        question.drop()
        return 1, "timed out"
    return answer


class Queue:
    """The states of jobs, queried for all of them at once and not more often than configured.

    Args:
        interval: seconds between questions; while the scheduler does not answer, they get rarer.
        clock: seconds that only grow.
    """

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._interval = self._pause = interval
        self._due = 0.0
        self._question: Question | None = None
        self._states: dict[str, str] = {}
        self.known = 0.0  # when the question was asked that the states are the answer to
        self.problem = ""  # what the scheduler said when it did not answer last

    def state(self, job: str) -> str:
        """The state of a job, such as RUNNING; empty where Slurm did not know it when it was asked last."""
        return self._states.get(job, "")

    def look(self, jobs: Collection[str]) -> bool:
        """Takes an answer that has come, and asks again where it is time to; whether there was news."""
        news = self._take()
        if self._question is None and jobs and self._clock() >= self._due:
            listed = ",".join(sorted(jobs))
            words = ["squeue", "--noheader", "--states=all", f"--jobs={listed}", "--format=%i|%T"]
            try:
                self._question = Question(words)
            except OSError as error:
                self._put_off(str(error))
        return news

    def hurry(self) -> None:
        """Asks again as soon as possible."""
        if not self.problem:
            self._due = 0.0

    def close(self) -> None:
        if self._question is not None:
            self._question.drop()
            self._question = None

    def _take(self) -> bool:
        if self._question is None:
            return False
        answer = self._question.answer()
        if answer is None:
            return False
        asked, self._question = self._question.asked, None
        code, text = answer
        if code == 0 or _UNKNOWN in text:
            self._states = parse(text) if code == 0 else {}
            self.known, self._pause, self.problem = asked, self._interval, ""
            self._due = self._clock() + self._pause
        else:
            self._put_off(text.strip())
        return not self.problem

    def _put_off(self, problem: str) -> None:
        self.problem = problem
        self._pause = min(max(2 * self._pause, 1.0), _SLOWEST)
        self._due = self._clock() + self._pause


def parse(text: str) -> dict[str, str]:
    """Job -> state, from lines JOB|STATE; other lines, such as warnings, are passed over."""
    pairs = (line.strip().partition("|") for line in text.splitlines())
    return {job: state for job, mark, state in pairs if mark and job.isdigit()}


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
