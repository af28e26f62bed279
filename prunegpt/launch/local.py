"""Attempts on this machine, in processes that stay warm from one attempt to the next."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prunegpt.errors import LaunchError
from prunegpt.launch.base import Exited
from prunegpt.launch.log import LOG, append
from prunegpt.launch.process import WorkerProcess
from prunegpt.launch.worker import LEAVING_VARIABLE
from prunegpt.root import Root
from prunegpt.spec.execution import processors

WORKER = (sys.executable, "-P", "-m", "prunegpt", "trial", "serve")
_DEVICES = "CUDA_VISIBLE_DEVICES"  # ROCm reads it too
NVIDIA = Path("/proc/driver/nvidia/gpus")
AMD = Path("/sys/class/kfd/kfd/topology/nodes")
_THREADS = "OMP_NUM_THREADS"
_WAITING = "OMP_WAIT_POLICY"
MEMORY_PATIENCE = 30.0  # seconds that a dead worker's memory on a GPU is waited for
_REUSED = ("finished", "diverged")  # a worker that ended so takes the next attempt; any other is thrown away


@dataclass
class _Slot:
    index: int
    environment: Mapping[str, str]
    worker: WorkerProcess | None = None
    handle: str | None = None  # of the attempt that runs in it
    folder: Path = field(default_factory=Path)
    cancelled: bool = False
    spent: bool = False  # the worker is to be thrown away before the next attempt
    leaving: frozenset[int] = frozenset()  # processes of a dead worker that may still hold memory of a GPU


class LocalLauncher:
    """Runs attempts in warm workers, one per slot: importing torch costs seconds, so a sound process is kept.

    After a worker that was thrown away, the next one of a slot with a GPU begins when its memory is back, or after
    half a minute.

    Args:
        root: workers' own logs go to ROOT/launch.
        slots: attempts at a time. Processor threads and CUDA devices are shared out between them.
        command: what a worker runs.
        devices: CUDA devices; default those of CUDA_VISIBLE_DEVICES, else all of the machine.
        threads: CPU threads of one attempt; default an equal share.
    """

    queues = False  # an attempt begins at once, see `base.queues`

    def __init__(
        self,
        root: Root,
        slots: int = 1,
        *,
        command: Sequence[str] = WORKER,
        devices: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        if slots < 1:
            raise LaunchError(f"a launcher needs at least 1 slot, got {slots}.")
        self._command = tuple(command)
        self._logs = root.path / "launch"
        found = cuda_devices() if devices is None else list(devices)
        self._slots = [_Slot(index, slot_environment(index, slots, found, threads)) for index in range(slots)]
        self._ended: dict[str, Exited] = {}
        self._count = 0

    @property
    def slots(self) -> int:
        return len(self._slots)

    def submit(self, folder: Path) -> str:
        slot = next((slot for slot in self._slots if slot.handle is None), None)
        if slot is None:
            raise LaunchError(f"at most {self.slots} attempts run at a time, and all slots are taken. Poll them first.")
        if slot.worker and (slot.spent or slot.worker.code is not None or not slot.worker.send(folder)):
            self._discard(slot)
        self._count += 1
        handle = f"local-{slot.index}-{self._count}"
        if slot.worker is None:
            leaving = " ".join(map(str, [MEMORY_PATIENCE, *slot.leaving])) if slot.leaving else "0"
            environment = {**slot.environment, LEAVING_VARIABLE: leaving}
            slot.worker = WorkerProcess(self._command, environment, self._logs / f"local-{slot.index}.log")
            slot.worker.send(folder)  # where it died already, `poll` finds it dead
        slot.handle, slot.folder, slot.cancelled = handle, folder, False
        return handle

    def poll(self, handle: str) -> Exited | None:
        if handle in self._ended:
            return self._ended[handle]
        slot = self._slot(handle)
        assert slot.worker is not None
        code = slot.worker.code  # before the answers: a dead worker answers no more
        state = slot.worker.answers().get(str(slot.folder))
        if state is None and code is None:
            return None
        exited = _exited(state, code, slot.cancelled)
        if exited.reason != "ended":
            append(slot.folder / LOG, slot.worker.stray())
        slot.spent = code is not None or slot.cancelled or state not in _REUSED
        slot.handle = None
        slot.leaving = slot.leaving if state is None else frozenset()
        self._ended[handle] = exited
        return exited

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        if handle in self._ended:
            return
        slot = self._slot(handle)
        assert slot.worker is not None
        slot.cancelled = True
        slot.worker.signal(signal.SIGKILL if kill else signal.SIGTERM)

    def close(self) -> None:
        for slot in self._slots:
            self._discard(slot)

    def _slot(self, handle: str) -> _Slot:
        for slot in self._slots:
            if slot.handle == handle:
                return slot
        raise LaunchError(f"a handle must come from this launcher's submit, got {handle!r}.")

    def _discard(self, slot: _Slot) -> None:
        if slot.worker is None:
            return
        if slot.handle is not None:  # it is busy, so it would not end by itself
            slot.worker.signal(signal.SIGKILL)
        slot.worker.end()
        if slot.environment.get(_DEVICES):
            slot.leaving = slot.leaving | frozenset(slot.worker.members)
        slot.worker, slot.spent = None, False


def cuda_devices() -> list[str]:
    """The CUDA devices that workers may see, those of ROCm among them, asked without a library of either."""
    visible = os.environ.get(_DEVICES)
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip()]
    cards = len(list(NVIDIA.iterdir())) if NVIDIA.is_dir() else 0
    if not cards and AMD.is_dir():  # CPUs are nodes too, which have no such units
        cards = sum(_compute_units(node / "properties") > 0 for node in AMD.iterdir())
    return [str(index) for index in range(cards)]


def _compute_units(properties: Path) -> int:
    try:
        lines = properties.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("simd_count ")), 0)


def slot_environment(index: int, slots: int, devices: Sequence[str], threads: int | None = None) -> dict[str, str]:
    """The environment of one slot of several: its share of the CPU cores and of the CUDA devices.

    Threads that wait for each other sleep instead of spinning, so that whatever else runs on the machine does not slow
    a trial down several times. With more devices than slots each slot gets several; with fewer, slots share one. A
    single slot gets everything, and what the user has set stays.

    Args:
        threads: CPU threads of each slot, whatever else is set.
    """
    environment = {_WAITING: "PASSIVE", **os.environ}
    if threads is not None:
        environment[_THREADS] = str(threads)
    elif slots > 1 and _THREADS not in environment:
        environment[_THREADS] = str(max(1, processors() // slots))
    if devices:
        own = list(devices[index::slots]) if len(devices) >= slots else [devices[index % len(devices)]]
        environment[_DEVICES] = ",".join(own)
    return environment


def _exited(state: str | None, code: int | None, cancelled: bool) -> Exited:
    number = -code if code is not None and code < 0 else None
    exit_code = code if code is not None and code >= 0 else None
    if cancelled:
        return Exited("cancelled", exit_code, number)
    if state is not None:
        return Exited("failed" if state == "failed" else "ended", exit_code, None)
    if number is not None:
        return Exited("signal", None, number)
    return Exited("failed" if exit_code else "lost", exit_code, None)
