"""From the launcher part of a spec to the launcher."""

from collections.abc import Sequence
from typing import Any

from prunegpt.errors import LaunchError
from prunegpt.launch.base import Launcher
from prunegpt.launch.job import TRIAL
from prunegpt.registry import LAUNCHERS
from prunegpt.root import Root
from prunegpt.spec.execution import OPTIONS, LauncherSpec


def open_launcher(spec: LauncherSpec, root: Root, *, slots: int | None = None) -> Launcher:
    """The launcher that a spec asks for.

    A launcher, also a plug-in's, is called with the root, the slots (None where nobody said) and the spec.

    Args:
        slots: number of concurrent trials; overrides the spec.

    Raises:
        LaunchError: its options are wrong, or it cannot run here.
        MissingPackageError: the package it needs is not installed; the message contains the install command.
        UnknownPartError: no launcher has that name.
    """
    if slots is not None and slots < 1:
        raise LaunchError(f"a launcher needs at least 1 slot, got {slots}.")
    if spec.kind in OPTIONS:
        try:
            spec.parsed()
        except ValueError as error:
            raise LaunchError(f"launcher.options cannot be used: {error}") from error
    launcher: Launcher = LAUNCHERS.load(spec.kind)(root, slots or spec.slots, spec)
    return launcher


def check_launcher(spec: LauncherSpec, root: Root, *, slots: int | None = None) -> None:
    """Raises what `open_launcher` would, as far as it is known before there is a turn to wait for.

    Nothing is held: those of this machine and of Slurm hold nothing before the first attempt, and Ray's cluster is not
    joined. Of a plug-in's it is known whether it loads.
    """
    if spec.kind == "ray":
        from prunegpt.launch.ray import check

        options: Any = spec.parsed()
        check(options)
    elif spec.kind in OPTIONS:
        LAUNCHERS.load(spec.kind)(root, slots or spec.slots, spec)
    else:
        LAUNCHERS.load(spec.kind)


def together(command: Sequence[str], processes: int) -> tuple[str, ...]:
    """The command of a worker whose trials are each trained by several processes."""
    return (*command, *(("--processes", str(processes)) if processes > 1 else ()))


def local(root: Root, slots: int | None, spec: LauncherSpec) -> Launcher:
    """One slot for each GPU, or for each group of `launcher.gpus` of them."""
    from prunegpt.launch.local import WORKER, LocalLauncher, cuda_devices

    devices = cuda_devices()
    needed = spec.gpus or 0
    if needed > len(devices):
        raise LaunchError(
            f"the launcher local has the GPUs of this machine; launcher.gpus asks for {needed} for each trial and "
            f"there are {len(devices)}. Set launcher.gpus to at most {len(devices)}, or launcher.processes alone."
        )
    most = len(devices) // needed if needed else None
    if most is not None and slots is not None and slots > most:
        raise LaunchError(
            f"every trial must have GPUs of its own where launcher.gpus is set; {slots} slots of {needed} GPUs need "
            f"{slots * needed} and there are {len(devices)}. Set slots to at most {most}."
        )
    count = slots or most or len(devices) * spec.slots_per_gpu or 1
    shown = [""] if spec.gpus == 0 else devices[: count * max(needed, 1)]  # none at all hides those of the machine
    options: Any = spec.parsed()
    return LocalLauncher(root, count, devices=shown, command=together(WORKER, spec.ranks), threads=options.threads)


def slurm(root: Root, slots: int | None, spec: LauncherSpec) -> Launcher:
    """Jobs of Slurm."""
    from prunegpt.launch.slurm import SLOTS, SlurmLauncher

    options: Any = spec.parsed()
    return SlurmLauncher(root, slots or SLOTS, options=options, gpus=spec.gpus, command=together(TRIAL, spec.ranks))


def ray(root: Root, slots: int | None, spec: LauncherSpec) -> Launcher:
    """Actors of Ray."""
    from prunegpt.launch.ray import RayLauncher

    options: Any = spec.parsed()
    return RayLauncher(root, slots, options=options, gpus=spec.gpus, command=together(TRIAL, spec.ranks))
