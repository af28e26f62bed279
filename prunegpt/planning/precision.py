"""What `precision: auto` means: decided when a trial is planned, so that keys and records hold what was computed in."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from prunegpt.spec.execution import LauncherSpec
from prunegpt.spec.schema import TrialSpec

_ASK = """
import torch
from prunegpt.lm.device import memory_of, pick_device, pick_dtype
place = pick_device("auto")
print(memory_of(place), max(torch.cuda.device_count(), 1), pick_dtype("auto", place))
"""
_DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/kfd"))  # of NVIDIA and AMD
_PATIENCE = 120.0  # seconds for an answer: torch is read from a disk that may be slow


def resolved(precision: str, device: str, launcher: LauncherSpec) -> str:
    """The precision that a trial is computed in: the one it names, or for `auto` the best of its device.

    That is bfloat16 where the device has it natively, else float32. Of a cluster's nodes nothing is known here: a
    trial that is given GPUs there counts as one on a device that has bfloat16, any other as one on a CPU.

    Args:
        device: auto, cuda, mps or cpu.
        launcher: where the trial will run.
    """
    if precision != "auto":
        return precision
    if device in ("cpu", "mps"):
        return "float32"
    if launcher.kind != "local":
        return "bfloat16" if launcher.gpus else "float32"
    return precision_here()


def precisions(spec: TrialSpec, launcher: LauncherSpec) -> dict[str, Any]:
    """The fields of a trial that hold a precision, each resolved: its own and its evaluations."""
    own = resolved(spec.precision, spec.device, launcher)
    evaluate = tuple(
        one.model_copy(update={"precision": resolved(one.precision or own, spec.device, launcher)})
        for one in spec.evaluations
    )
    return {"precision": own, "evaluate": evaluate}


def precision_here() -> str:
    """What `auto` comes to on this machine."""
    return this_machine()[2]


def accelerator_here() -> int:
    """Bytes of memory of this machine's first accelerator; 0 where torch finds none, or its memory is the host's."""
    return this_machine()[0]


def accelerators_here() -> int:
    """How many accelerators of this machine trials are spread over, at least 1."""
    return this_machine()[1]


@cache
def this_machine() -> tuple[int, int, str]:
    """What torch says of this machine; asked in a process of its own, and only where there is a driver of a GPU."""
    if not any(path.exists() for path in _DRIVERS) and shutil.which("nvidia-smi") is None:
        return 0, 1, "float32"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ASK], capture_output=True, text=True, check=True, timeout=_PATIENCE
        )
    except (OSError, subprocess.SubprocessError):
        return 0, 1, "float32"
    memory, count, precision = done.stdout.split()[-3:]
    return int(memory), int(count), precision.removeprefix("torch.")
