"""Hands attempts to Slurm, through submitit: one batch job each, its script and Slurm's words in FOLDER/slurm."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunegpt.errors import LaunchError, MissingPackageError
from prunegpt.launch.job import run_job
from prunegpt.spec.execution import SlurmOptions

_AWAY = re.compile(
    r"contact slurm controller|timed out|connect failure|unexpected message|zero bytes|transport endpoint|standby mode",
    re.IGNORECASE,
)
_TIME = re.compile(r"^#SBATCH --time=.*\n", re.MULTILINE)


class UnansweredError(LaunchError):
    """Slurm was away, or slow to answer: it may have the job or not."""


class Submitter:
    """Makes jobs of attempts; arguments and errors as of `SlurmLauncher`."""

    def __init__(self, options: SlurmOptions, gpus: int | None, command: Sequence[str]) -> None:
        try:
            from submitit import SlurmExecutor
        except ImportError as error:
            raise MissingPackageError(
                "the launcher slurm needs submitit, which is not installed. Install it: pip install 'prunegpt[slurm]'"
            ) from error

        class Executor(SlurmExecutor):  # type: ignore[misc]
            """Leaves the time limit to the cluster where none is given; submitit would set five minutes."""

            def _make_submission_file_text(self, command: str, uid: str) -> str:
                text = str(super()._make_submission_file_text(command, uid))
                return text if options.time else _TIME.sub("", text)

        self._class = Executor
        self._options, self._gpus, self._command = options, gpus, tuple(command)
        self._executor(Path(), "prunegpt")

    def send(self, folder: Path, name: str) -> str:
        """Submits the attempt in a folder as a job of that name; gives its id.

        Raises:
            UnansweredError: nobody knows whether Slurm has it.
            LaunchError: Slurm refuses it.
        """
        executor = self._executor(folder / "slurm", name)
        try:
            job = executor.submit(run_job, str(folder), self._command)
        except Exception as error:  # of submitit's, and whatever the file system has to say
            if _AWAY.search(str(error)):
                raise UnansweredError(f"Slurm must take the job of {folder}, but is away: {_why(error)}") from error
            raise LaunchError(f"Slurm must take the job of {folder}, but refuses it: {_why(error)}") from error
        return str(job.job_id)

    def _executor(self, folder: Path, name: str) -> Any:
        options = self._options
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
            executor = self._class(folder=folder, python=options.python)
        except RuntimeError as error:
            raise LaunchError(
                f"the launcher slurm must run where jobs can be submitted, but it cannot here: {error} "
                f"Use a login node, or the launcher local."
            ) from error
        executor.update_parameters(
            **{key: value for key, value in given.items() if value is not None},
            job_name=name,
            wckey="prunegpt",
            signal_delay_s=math.ceil(options.notice),
            additional_parameters={"no-requeue": True, **options.extra},
        )
        return executor


def _why(error: Exception) -> str:
    """The lines of sbatch's that say why, without the trace around them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line]
    return " ".join(told or lines[-1:] or [type(error).__name__])
