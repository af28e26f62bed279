"""Attempts as Slurm jobs, submitted through submitit: one job an attempt.

Slurm starts none of them again by itself (`--no-requeue`): an attempt that is preempted or out of time writes a
checkpoint and ends, and the coordinator tries the trial again. How a job ended is read from exit.json, which the job
itself writes; squeue, asked for all jobs at once, reports those that could not. sacct is not needed.
"""

import math
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from prunegpt.errors import LaunchError, MissingPackageError
from prunegpt.launch.base import Exited
from prunegpt.launch.job import TRIAL, Ended, run_job
from prunegpt.launch.log import LOG, append, last_lines
from prunegpt.launch.slurm_left import end_left, notes_of
from prunegpt.launch.slurm_queue import Question, Queue, ask, end_of, is_over
from prunegpt.root import Root, write_json
from prunegpt.spec.execution import SlurmOptions

SLOTS = 8  # default
_LOOK = 0.2  # seconds between polls of an attempt's exit.json
_WAIT = 20.0  # seconds that `close` waits for jobs to end
_NAME = 60  # characters
_ALL = 100  # lines of Slurm's own words that are kept
_AWAY = re.compile(
    r"contact slurm controller|timed out|connect failure|unexpected message|zero bytes|transport endpoint|standby mode",
    re.IGNORECASE,
)
_TIME = re.compile(r"^#SBATCH --time=.*\n", re.MULTILINE)


class UnansweredError(LaunchError):
    """Slurm was away, or slow to answer: it may have the job or not."""


@dataclass
class _Job:
    handle: str  # the job's name, too
    folder: Path
    id: str = ""
    submitted: float = 0.0
    asked: bool = False  # to end
    killed: bool = False
    looked: float = 0.0
    ended: Ended | None = None
    ended_at: float = 0.0  # when its exit.json was seen
    gone_at: float = 0.0  # when it was found to be in no queue


class SlurmLauncher:
    """Runs each attempt as a job on a node that sees the root.

    Args:
        root: on a file system that the nodes share. Jobs are noted in ROOT/launch/slurm while they last, so that the
            next coordinator can end those that this one leaves behind, see `slurm_left`.
        slots: jobs in the queue and running at a time, what `%` is to a job array.
        options: what is asked of Slurm.
        gpus: GPUs of one attempt.
        command: what a job runs, with the folder as its last argument.
        settle: seconds that a file written on a node may take to be seen here.

    Raises:
        LaunchError: this machine has no Slurm.
        MissingPackageError: submitit is not installed.
    """

    def __init__(
        self,
        root: Root,
        slots: int = SLOTS,
        *,
        options: SlurmOptions | None = None,
        gpus: int | None = None,
        command: Sequence[str] = TRIAL,
        settle: float = 10.0,
    ) -> None:
        if slots < 1:
            raise LaunchError(f"a launcher needs at least 1 slot, got {slots}.")
        self._options, self._gpus, self._command = options or SlurmOptions(), gpus, tuple(command)
        self._executor(Path(), "prunegpt")
        self._slots, self._settle = slots, settle
        self._root = root
        self._queue = Queue(self._options.poll)
        self._jobs: dict[str, _Job] = {}
        self._ended: dict[str, Exited] = {}
        self._orders: list[Question] = []  # scancel commands that run

    @property
    def slots(self) -> int:
        return self._slots

    def submit(self, folder: Path) -> str:
        if len(self._jobs) >= self._slots:
            raise LaunchError(f"at most {self.slots} attempts run at a time, and all slots are taken. Poll them first.")
        folder = folder.absolute()
        job = _Job(_name(folder), folder)
        if self._noted(job).exists():  # Slurm did not answer, and may have it
            job.id = _find(job)
        self._note(job)
        try:
            job.id = job.id or self._send(folder, job.handle)
        except UnansweredError:
            raise
        except Exception:
            self._forget(job)
            raise
        job.submitted = time.monotonic()
        self._note(job)
        self._jobs[job.handle] = job
        return job.handle

    def poll(self, handle: str) -> Exited | None:
        if handle in self._ended:
            return self._ended[handle]
        job = self._job(handle)
        self._advance()
        exited = self._end(job)
        if exited is None:
            return None
        if exited.reason != "ended":
            append(job.folder / LOG, _words(job.folder))
        del self._jobs[handle]
        self._forget(job)
        self._ended[handle] = exited
        return exited

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        if handle in self._ended:
            return
        job = self._job(handle)
        job.asked, job.killed = True, job.killed or kill
        self._order(job)

    def close(self) -> None:
        """Cancels what still runs and waits for it, but not for a scheduler that is away: the next run cancels then."""
        with suppress(LaunchError):
            end_left(self._root, patience=_WAIT, words="", insist=False)
        self._jobs.clear()
        for order in self._orders:
            order.drop()
        self._orders.clear()
        self._queue.close()

    # -- submitting --------------------------------------------------------------------------------------------

    def _send(self, folder: Path, name: str) -> str:
        """Submits the attempt in a folder as a job of that name, its script and output in FOLDER/slurm; gives its id.

        Raises:
            UnansweredError: nobody knows whether Slurm has it.
            LaunchError: Slurm refuses it.
        """
        executor = self._executor(folder / "slurm", name)
        try:
            job = executor.submit(run_job, str(folder), self._command)
        except Exception as error:  # of submitit's, and whatever the file system has to say
            if _AWAY.search(str(error)):
                raise UnansweredError(f"Slurm did not answer to the job of {folder}: {_why(error)}") from error
            raise LaunchError(f"Slurm refused the job of {folder}: {_why(error)}") from error
        return str(job.job_id)

    def _executor(self, folder: Path, name: str) -> Any:
        try:
            from submitit import SlurmExecutor
        except ImportError as error:
            raise MissingPackageError(
                "the launcher slurm needs submitit, which is not installed. Install it: pip install 'prunegpt[slurm]'"
            ) from error
        options = self._options

        class Executor(SlurmExecutor):  # type: ignore[misc]
            """Leaves a missing time limit to the cluster; submitit would set five minutes."""

            def _make_submission_file_text(self, command: str, uid: str) -> str:
                text = str(super()._make_submission_file_text(command, uid))
                return text if options.time else _TIME.sub("", text)

        given = {
            "partition": options.partition,
            "account": options.account,
            "qos": options.qos,
            "time": math.ceil(options.time / 60) if options.time else None,
            "cpus_per_task": options.cpus,
            "mem": options.mem,
            "gpus_per_node": self._gpus or None,
            "setup": list(options.setup) or None,
        }
        try:
            executor = Executor(folder=folder, python=options.python)
        except RuntimeError as error:
            raise LaunchError(
                f"the launcher slurm cannot submit jobs here: {error} Use a login node, or the launcher local."
            ) from error
        executor.update_parameters(
            **{key: value for key, value in given.items() if value is not None},
            job_name=name,
            wckey="prunegpt",
            signal_delay_s=math.ceil(options.notice),
            additional_parameters={"no-requeue": True, **options.extra},
        )
        return executor

    # -- following ---------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """One step of all background work."""
        self._orders = [order for order in self._orders if order.answer() is None]
        if self._queue.look([job.id for job in self._jobs.values()]):
            for job in self._jobs.values():
                if job.asked and not is_over(self._queue.state(job.id)):
                    with suppress(OSError):  # at the next look, then
                        self._order(job)  # it may not have been there yet to hear it

    def _end(self, job: _Job) -> Exited | None:
        now = time.monotonic()
        if job.ended is None and now - job.looked >= _LOOK:
            job.looked, job.ended = now, Ended.read(job.folder)
            job.ended_at = now
        state = self._queue.state(job.id)
        if job.ended is not None:
            if job.ended.heard and not job.asked and self._queue.known < job.ended_at and not self._queue.problem:
                self._queue.hurry()  # who asked it to end is in the queue's state
                return None
            return end_of(state, job.ended, asked=job.asked)
        if self._queue.known <= job.submitted or (state and not is_over(state)):
            job.gone_at = 0.0
            return None
        job.gone_at = job.gone_at or now
        if now - job.gone_at < self._settle and not (job.asked and not state):
            return None  # its exit.json may be on the way
        return end_of(state, None, asked=job.asked)

    # -- cancelling --------------------------------------------------------------------------------------------

    def _order(self, job: _Job) -> None:
        words = ["scancel", f"--name={job.handle}"]
        if job.killed:
            self._orders.append(Question([*words, job.id]))
        else:
            self._orders.append(Question([*words, "--state=PENDING", job.id]))
            self._orders.append(Question([*words, "--state=RUNNING", "--signal=USR1", job.id]))
        self._queue.hurry()

    def _noted(self, job: _Job) -> Path:
        return notes_of(self._root) / f"{job.handle}.json"

    def _note(self, job: _Job) -> None:
        write_json(self._noted(job), {"name": job.handle, "job": job.id, "folder": str(job.folder)})

    def _forget(self, job: _Job) -> None:
        self._noted(job).unlink(missing_ok=True)

    def _job(self, handle: str) -> _Job:
        if handle not in self._jobs:
            raise LaunchError(f"a handle must come from this launcher's submit, got {handle!r}.")
        return self._jobs[handle]


def _name(folder: Path) -> str:
    """What squeue shows of an attempt, and no other's job has; without the characters that Slurm takes apart."""
    words = re.sub(r"[^A-Za-z0-9._=-]", "_", f"{folder.parent.name}-{folder.name}")[:_NAME]
    return f"{words}-{sha256(os.fsencode(folder)).hexdigest()[:8]}"


def _find(job: _Job) -> str:
    """The id of a job whose submission was not answered; empty where Slurm did not take it.

    Raises:
        LaunchError: Slurm does not answer this either.
    """
    code, text = ask("squeue", "--noheader", "--states=all", f"--name={job.handle}", "--format=%i")
    if code:
        raise LaunchError(f"Slurm timed out when asked for the job of {job.folder}: {text.strip()}")
    return text.split()[0] if text.strip() else ""


def _words(folder: Path) -> str:
    """What Slurm itself has said of a job."""
    files = [file for file in sorted((folder / "slurm").glob("*.err")) if file.stat().st_size]
    return "\n".join(last_lines(file, _ALL) for file in files)


def _why(error: Exception) -> str:
    """The lines of sbatch's output that give the reason, without the trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line]
    return " ".join(told or lines[-1:] or [type(error).__name__])
