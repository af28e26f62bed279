"""Attempts on a Ray cluster, an existing one or one on this machine: one actor an attempt, which holds its resources.

The actor starts `prunegpt trial run` as a process on its node and waits for it. Nothing but plain strings and numbers
crosses to it, and nothing of a trial comes back but how its process ended.
"""

import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prunegpt.errors import LaunchError, MissingPackageError
from prunegpt.launch.base import Exited, Reason
from prunegpt.launch.job import TRIAL, Ended, Job
from prunegpt.launch.log import LOG, append
from prunegpt.root import Root
from prunegpt.spec.execution import RayOptions, processors

_GONE = 10.0  # seconds that `close` waits for processes to end
_KNOCK = 10.0  # seconds that a cluster gets to open its door
_AGAIN = 2.0  # seconds between questions to an actor that does not answer
_CALLS = 64  # that an actor answers at a time: one waits, and more where answers were lost
_GIGABYTE = 10**9
_STORE = 80_000_000  # bytes for objects in a cluster of our own: nearly nothing is sent
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class AttemptActor:
    """The actor: one process of one attempt, on the node where its resources are."""

    def __init__(self, folder: str, command: Sequence[str]) -> None:
        self._start = partial(Job, Path(folder), command)
        self._job: Job | None = None
        self._early: list[bool] = []  # what was asked before the process was there
        self._lock = threading.Lock()

    def run(self) -> tuple[int | None, int | None]:
        """Starts the process and waits for its end; exit code and signal. Called again, it waits for the same."""
        with self._lock:
            early = self._early if self._job is None else []
            job = self._job = self._job or self._start()  # in the thread that waits: it dies with its parent thread
        for kill in early:
            self.end(kill)
        ended = job.wait()
        return ended.code, ended.signal

    def end(self, kill: bool) -> None:
        """Asks for a checkpoint and an end, or kills."""
        with self._lock:
            job = self._job
            if job is None:
                self._early.append(kill)
        if job is not None and kill:
            job.kill()
        elif job is not None:
            job.ask("SIGTERM")


@dataclass
class _Running:
    folder: Path
    actor: Any
    ready: Any  # reference that is there once the actor has its resources
    result: Any  # reference to what `run` gives
    asked: bool = False
    again: float = 0.0  # when it may be asked again how it ended


class RayLauncher:
    """Runs each attempt as an actor.

    Args:
        root: on a file system that the nodes share.
        slots: attempts at a time; None: as many as the cluster has resources for when we connect.
        options: the cluster, and what an attempt needs of it.
        gpus: GPUs of one attempt; None: one where the cluster has any.
        command: what an actor runs, with the folder as its last argument.

    Raises:
        LaunchError: there is no such cluster, or not even one attempt fits into it.
        MissingPackageError: ray is not installed.
    """

    def __init__(
        self,
        root: Root,
        slots: int | None = None,
        *,
        options: RayOptions | None = None,
        gpus: int | None = None,
        command: Sequence[str] = TRIAL,
    ) -> None:
        if slots is not None and slots < 1:
            raise LaunchError(f"a launcher needs at least 1 slot, got {slots}.")
        self._ray = _ray()
        self._options = options or RayOptions()
        self._gpus = gpus or 0
        self._command = list(command)
        self._log = root.path / "launch" / "ray.log"
        self._connected = not self._ray.is_initialized()
        if self._connected:
            self._connect(slots)
        if gpus is None:
            self._gpus = 1 if self._ray.cluster_resources().get("GPU") else 0
        self._slots = slots or self._fit()
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, Exited] = {}
        self._count = 0

    @property
    def slots(self) -> int:
        return self._slots

    def submit(self, folder: Path) -> str:
        if len(self._running) >= self._slots:
            raise LaunchError(f"at most {self.slots} attempts run at a time, and all slots are taken. Poll them first.")
        options = self._options
        given = {"num_cpus": options.cpus, "num_gpus": self._gpus, "resources": dict(options.resources)}
        if options.mem:
            given["memory"] = int(options.mem * _GIGABYTE)
        try:
            made = self._ray.remote(AttemptActor).options(
                max_concurrency=_CALLS, max_restarts=0, max_task_retries=0, **given
            )
            actor = made.remote(str(folder.absolute()), self._command)
            running = _Running(folder, actor, actor.__ray_ready__.remote(), actor.run.remote())
        except self._ray.exceptions.RayError as error:
            raise LaunchError(f"Ray did not accept the attempt: {_line(error)}") from error
        self._count += 1
        handle = f"ray-{self._count}"
        self._running[handle] = running
        return handle

    def poll(self, handle: str) -> Exited | None:
        if handle in self._ended:
            return self._ended[handle]
        running = self._find(handle)
        exited = self._end(running)
        if exited is None:
            return None
        del self._running[handle]
        self._ray.kill(running.actor)  # gives its resources back
        self._ended[handle] = exited
        return exited

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        if handle in self._ended:
            return
        running = self._find(handle)
        running.asked = True
        if self._there(running.ready):
            running.actor.end.remote(kill)
        else:  # it waits for resources
            self._ray.kill(running.actor)

    def close(self) -> None:
        """Kills what still runs, and ends a cluster of our own."""
        for handle in self._running:
            self.cancel(handle, kill=True)
        end = time.monotonic() + _GONE
        while any(self.poll(handle) is None for handle in list(self._running)) and time.monotonic() < end:
            time.sleep(0.02)
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def _end(self, running: _Running) -> Exited | None:
        if not self._there(running.result):
            return None
        asked = running.asked
        try:
            code, number = self._ray.get(running.result)
        except self._ray.exceptions.ActorUnavailableError:  # for a while, perhaps: its answer is lost, it is not
            if time.monotonic() >= running.again:
                running.result, running.again = running.actor.run.remote(), time.monotonic() + _AGAIN
            return None
        except self._ray.exceptions.RayError as error:
            left = Ended.read(running.folder)  # it ended, but its node did before it could report
            if left is None:
                append(running.folder / LOG, _line(error))
                return Exited("cancelled") if asked else Exited(_reason(error))
            code, number = left.code, left.signal
        if code == 0:
            return Exited("cancelled" if asked else "ended", 0)
        if asked:
            return Exited("cancelled", code, number)
        return Exited("signal", None, number) if number is not None else Exited("failed", code)

    def _there(self, reference: Any) -> bool:
        """Whether a result or an error is there."""
        return bool(self._ray.wait([reference], timeout=0)[0])

    def _find(self, handle: str) -> _Running:
        if handle not in self._running:
            raise LaunchError(f"a handle must come from this launcher's submit, got {handle!r}.")
        return self._running[handle]

    # -- the cluster -------------------------------------------------------------------------------------------

    def _connect(self, slots: int | None) -> None:
        address = _address(self._options)
        own: dict[str, Any] = {}
        if address == "local":
            needed = math.ceil((slots or 1) * self._options.cpus)
            own = {"num_cpus": max(processors(), needed), "include_dashboard": False, "object_store_memory": _STORE}
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            _knock(address)
            self._ray.init(
                address=address, namespace="prunegpt", log_to_driver=False, logging_level=logging.CRITICAL, **own
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise _nobody(address, error) from error
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        _words_to(self._log)
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():  # Ray puts its own there
                signal.signal(number, handler)

    def _fit(self) -> int:
        """How many attempts the nodes have resources for."""
        needed = {"CPU": self._options.cpus, "GPU": self._gpus, **self._options.resources}
        if self._options.mem:
            needed["memory"] = self._options.mem * _GIGABYTE
        counts = []
        for node in self._ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                counts.append(min(int(has.get(name, 0) // amount) for name, amount in needed.items() if amount))
        if sum(counts):
            return sum(counts)
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in needed.items() if amount)
        raise LaunchError(
            f"an attempt must fit onto one node of the Ray cluster; none of its {len(counts)} has {wanted}. Ask for "
            "less in launcher.gpus or launcher.options, or set slots where nodes are added on demand."
        )


def check(options: RayOptions) -> None:
    """Raises what the launcher would where Ray is not installed, or nobody listens where its cluster should be."""
    _ray()
    address = _address(options)
    try:
        _knock(address)
    except OSError as error:
        raise _nobody(address, error) from error


def _address(options: RayOptions) -> str:
    return options.address or os.environ.get("RAY_ADDRESS") or "local"


def _nobody(address: str, error: Exception) -> LaunchError:
    return LaunchError(
        f"the launcher ray found no cluster at {address!r}: {_line(error)} Name a running one in "
        "options.address, or leave it out to start one on this machine."
    )


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # no GPUs asked for, none seen
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            "the launcher ray needs ray, which is not installed. Install it: pip install 'prunegpt[ray]'"
        ) from error
    return ray


def _knock(address: str) -> None:
    """Looks whether somebody listens at HOST:PORT: Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def _words_to(log: Path) -> None:
    """What Ray would print of its cluster, whatever its log settings, goes to a file."""
    from ray._private import worker

    def note(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        append(log, "\n".join(map(str, data.get("lines", ()))))

    if hasattr(worker, "print_to_stdstream"):  # not public: where it is gone, Ray is heard
        worker.print_to_stdstream = note


def _reason(error: Exception) -> Reason:
    words = str(error)
    if "OutOfMemory" in type(error).__name__ or "running low on memory" in words or "OOM" in words:
        return "out-of-memory"
    if "creation task" in words or "RayTaskError" in type(error).__name__:
        return "failed"  # the process could not be started
    return "lost"


def _line(error: Exception) -> str:
    """An error of Ray's in one line."""
    return " ".join(str(error).split())
