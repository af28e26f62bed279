"""Where the trials of a sweep run, and what happens to those that fail. Nothing here decides a result."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

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
        raise ValueError(f'a duration must be seconds or like "30m", "2h", "1d", but got {value!r}.')
    return float(found[1]) * _UNITS[found[2]]


Duration = Annotated[float, BeforeValidator(_seconds)]


class FailureSpec(Part):
    """What happens to trials that fail."""

    retries: Mapping[str, Annotated[int, Field(ge=0)]] = Field(
        {}, description="reason -> how often a trial is tried again after it, over the defaults"
    )
    time_limit: Annotated[Duration, Field(gt=0)] | None = Field(
        None, description='of one attempt: seconds, or like "2h"; it then writes a checkpoint and ends'
    )
    heartbeat: Annotated[Duration, Field(gt=0)] = Field(
        120.0, description="an attempt that gives no sign of life for so long is lost"
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


class LauncherSpec(Part):
    """Where attempts run. A plain string means `{kind: STRING}`."""

    kind: str = Field("local", description="local, slurm, ray, or a plug-in's name")
    slots: int | None = Field(
        None, ge=1, description="trials at a time; one a GPU, or one on a machine without, where not given"
    )
    slots_per_gpu: int = Field(1, ge=1, description="trials that share one GPU, where slots is not given")
    gpus: int | None = Field(None, ge=0, description="GPUs of one trial, which then trains on all of them")
    options: Mapping[str, Scalar] = Field({}, description="further arguments of the launcher, such as partition")

    @model_validator(mode="before")
    @classmethod
    def _string(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> "LauncherSpec":
        LAUNCHERS.check(self.kind)
        return self
