"""What a process takes of its machine, as points of its trial: read from the system, without a package for it."""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EVERY = 15.0  # seconds between two measurements
_MIB = 2**20
_OURS = Path("/proc/self")


class Usage:
    """Measures this process now and then; asked more often, it gives nothing.

    Args:
        every: seconds from one measurement to the next, and from the start to the first.
        clock: seconds that only grow.
        cpu: CPU seconds of this process, in all its threads.
    """

    def __init__(
        self,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._every = every
        self._clock = clock
        self._cpu = cpu
        self._last = clock(), cpu()

    def look(self) -> Mapping[str, float]:
        """Curve name -> value, of the time since the last measurement; empty while the next one is not due.

        `system/processor_percent` is 100 where one core was busy all the time. GPUs are those that this process uses:
        `system/gpu_memory_mib` is what it has reserved on them together, `system/gpu_percent` the mean share of the
        time in which they computed, for any process.
        """
        now, spent = self._clock(), self._cpu()
        passed = now - self._last[0]
        if passed < self._every:
            return {}
        found = {"system/processor_percent": 100 * (spent - self._last[1]) / passed}
        self._last = now, spent
        with suppress(OSError, ValueError, IndexError):
            found["system/memory_mib"] = _resident() / _MIB
        found.update(_gpus())
        return found


def _resident() -> int:
    """Bytes of this process in memory.

    Raises:
        OSError: the system has no /proc.
    """
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def restart_peak(device: "torch.device") -> None:
    """Lets `peak` count from here on."""
    if device.type == "cpu":
        with suppress(OSError):  # not Linux, or no right to
            (_OURS / "clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak of the resident set
    else:
        with suppress(NotImplementedError, RuntimeError):  # a device that counts no memory
            sys.modules["torch"].accelerator.reset_peak_memory_stats(device)


def peak(device: "torch.device") -> int | None:
    """The most bytes held since `restart_peak`: of tensors on an accelerator, of the whole process on a CPU.

    Returns:
        None: not known; of a process only Linux reports it.
    """
    if device.type == "cpu":
        with suppress(OSError):
            lines = (_OURS / "status").read_text(encoding="utf-8").splitlines()
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    else:
        with suppress(NotImplementedError, RuntimeError):
            return int(sys.modules["torch"].accelerator.max_memory_allocated(device))
    return None


def _gpus() -> dict[str, float]:
    """What is known of the GPUs in use; nothing where torch has not been asked for one."""
    torch: Any = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return {}
    reserved = {device: cuda.memory_reserved(device) for device in range(cuda.device_count())}
    used = [device for device, count in reserved.items() if count]
    found = {"system/gpu_memory_mib": sum(reserved.values()) / _MIB}
    with suppress(OSError, AttributeError, ValueError):  # no driver library, or one without this device
        shares = [busy_share(f"GPU-{cuda.get_device_properties(device).uuid}") for device in used]
        if shares:
            found["system/gpu_percent"] = sum(shares) / len(shares)
    return found


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def busy_share(uuid: str) -> float:
    """Percent of the last moments in which a GPU computed, as the driver counts it.

    Raises:
        OSError: there is no driver library, or it refuses.
    """
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    device, share = ctypes.c_void_p(), _Utilization()
    if nvml.nvmlInit_v2():  # counted: each has its shutdown
        raise OSError("NVML does not start.")
    try:
        if nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device)) or nvml.nvmlDeviceGetUtilizationRates(
            device, ctypes.byref(share)
        ):
            raise OSError(f"NVML has no device {uuid}.")
    finally:
        nvml.nvmlShutdown()
    return float(share.gpu)
