"""Where the trials of a sweep run, and what happens to those that fail. Nothing here decides a result."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from prunegpt.errors import unknown
from prunegpt.registry import LAUNCHERS
from prunegpt.spec.part import Part, Scalar

RETRIES: Mapping[str, int] = {
    "out-of-memory": 2,  # each with half the micro-batch
    "signal": 1,
    "exit": 1,
    "lost": 2,  # no heartbeat, or a node that is gone
    "preempted": 10,
    "stopped": 1,  # by somebody other than us
    "exception": 0,
    "time-limit": 0,
    "disk-full": 0,
}  # reason -> how often a trial is tried again after it; divergence is a result and never tried again

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_UNITS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value.strip())
    if not found:
        raise ValueError(f'a duration must be seconds or like "30m", "2h", "1d", got {value!r}.')
    return float(found[1]) * _UNITS[found[2]]


Duration = Annotated[float, BeforeValidator(_seconds)]


def processors() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class FailureSpec(Part):
    """What happens to trials that fail."""

    retries: Mapping[str, Annotated[int, Field(ge=0)]] = Field(
        {}, description="reason -> how often a trial is tried again after it, over the defaults"
    )
    time_limit: Annotated[Duration, Field(gt=0)] | None = Field(
        None, description='of one attempt: seconds, or like "2h"; it then writes a checkpoint and ends'
    )
    heartbeat: Annotated[Duration, Field(ge=15)] = Field(
        120.0,
        description="seconds without a heartbeat after which an attempt is lost; heartbeats are sent every 5 seconds",
    )

    @field_validator("retries")
    @classmethod
    def _reasons(cls, value: Mapping[str, int]) -> Mapping[str, int]:
        for reason in value:
            if reason not in RETRIES:
                raise ValueError(unknown("reason", reason, list(RETRIES)))
        return value

    def allowed(self, reason: str) -> int:
        """How often a trial is tried again after ending for a reason."""
        return {**RETRIES, **self.retries}.get(reason, 0)


class LocalOptions(Part):
    """Options of the launcher `local`."""

    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of one trial; OMP_NUM_THREADS, or a slot's share of the cores if unset "
        "given. Training results on a CPU agree to the bit only between equal numbers",
    )


class SlurmOptions(Part):
    """Options of the launcher `slurm`. What is not given is left to the cluster's defaults."""

    partition: str | None = Field(None, description="the partition that trials are queued in")
    account: str | None = Field(None, description="the account that trials are charged to")
    qos: str | None = Field(None, description="the quality of service")
    time: Annotated[Duration, Field(ge=60)] | None = Field(
        None, description='of one attempt, like "4h"; shortly before, it writes a checkpoint and is queued again'
    )
    cpus: int | None = Field(None, ge=1, description="CPU cores of one trial")
    mem: str | None = Field(None, pattern=r"^\d+[KMGT]?B?$", description='memory of one trial, like "32G"')
    setup: tuple[str, ...] = Field((), description="shell lines before the trial, such as `module load cuda`")
    extra: Mapping[str, Scalar] = Field({}, description="further options of sbatch: name without dashes -> value")
    notice: Annotated[Duration, Field(ge=1)] = Field(
        90.0, description="before the time is over: seconds for writing a checkpoint"
    )
    poll: Annotated[Duration, Field(gt=0)] = Field(
        5.0, description="seconds between questions to the scheduler, one question for all trials"
    )
    python: str | None = Field(None, description="Python interpreter on the nodes (default: the current one)")


class RayOptions(Part):
    """Options of the launcher `ray`."""

    address: str | None = Field(
        None, description="HOST:PORT of a running cluster, or auto (default: one is started on this machine)"
    )
    cpus: float = Field(1.0, gt=0, description="CPU cores of one trial")
    mem: float | None = Field(None, gt=0, description="memory of one trial in GB that Ray sets aside")
    resources: Mapping[str, float] = Field({}, description="further resources of one trial, by the cluster's names")


OPTIONS: Mapping[str, type[Part]] = {"local": LocalOptions, "slurm": SlurmOptions, "ray": RayOptions}


class LauncherSpec(Part):
    """Where attempts run. A plain string means `{kind: STRING}`."""

    BARE = "kind"

    kind: str = Field("local", description="local, slurm, ray, or a plug-in's name")
    slots: int | None = Field(None, ge=1, description="number of concurrent trials (default: one per GPU, else 1)")
    slots_per_gpu: int = Field(1, ge=1, description="trials that share one GPU, where slots is not given")
    gpus: int | None = Field(None, ge=0, description="GPUs of one trial, which then trains on all of them")
    processes: int | None = Field(None, ge=1, description="data-parallel processes per trial (default: one per GPU)")
    options: Mapping[str, Any] = Field({}, description="further arguments of the launcher, such as partition")

    @model_validator(mode="after")
    def _known(self) -> "LauncherSpec":
        LAUNCHERS.check(self.kind)
        if self.gpus and self.processes and self.processes > self.gpus:
            raise ValueError(
                f"processes must be at most gpus, as each trains on a GPU of its own, got {self.processes} processes "
                f"and {self.gpus} gpus. Leave processes out: it is one per GPU."
            )
        if self.kind in OPTIONS:
            self.parsed()
        return self

    @property
    def ranks(self) -> int:
        """Processes that train one trial together."""
        return self.processes or max(self.gpus or 1, 1)

    def of(self, kind: str) -> "LauncherSpec":
        """The same for another launcher: options are those of one launcher, and are dropped with it."""
        return self if kind == self.kind else self.__class__(kind=kind, gpus=self.gpus, processes=self.processes)

    def parsed(self) -> Part:
        """The options of a built-in launcher.

        Raises:
            ValueError: one is unknown, or its value is not allowed; all problems are named.
        """
        part = OPTIONS[self.kind]
        problems = [
            unknown(f"option of launcher {self.kind}", name, list(part.model_fields))
            for name in self.options
            if name not in part.model_fields
        ]
        try:
            found = part(**{name: value for name, value in self.options.items() if name in part.model_fields})
        except ValidationError as error:
            problems += [_problem(self.kind, found) for found in error.errors()]
        if problems:
            raise ValueError(" ".join(problems))
        return found


def _problem(kind: str, found: Any) -> str:
    name = ".".join(str(step) for step in found["loc"])
    message = str(found["msg"]).removeprefix("Value error, ").rstrip(".")
    return f"option {name!r} of launcher {kind}: {message}, got {found['input']!r}."
