"""Several agents of one sweep on this machine: one a slot, each with its share of processors and GPUs."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from prunegpt.launch.local import cuda_devices, slot_environment

_PATIENT = {
    "WANDB_AGENT_DISABLE_FLAPPING": "true",  # three failures in a minute are no reason to stop
    "WANDB_AGENT_MAX_INITIAL_FAILURES": "1000000",
    "WANDB_ERROR_REPORTING": "false",
}


def run_agents(
    sweep: str, *, slots: int | None = None, count: int | None = None, say: Callable[[str], None] = print
) -> int:
    """Runs `wandb agent SWEEP` once a slot until all have ended; gives the largest of their exit codes.

    Args:
        sweep: ENTITY/PROJECT/ID.
        slots: agents; one a GPU where not given.
        count: runs of each agent.
    """
    devices = cuda_devices()
    wanted = slots or max(len(devices), 1)
    command = [sys.executable, "-m", "wandb", "agent", *(["--count", str(count)] if count else []), sweep]
    agents = [subprocess.Popen(command, env=agent_environment(index, wanted, devices)) for index in range(wanted)]
    say(f"{wanted} agents of {sweep} run; Ctrl-C lets their trials end, and a second one stops them.")
    with _passing_on(agents):
        codes = [_wait(agent) for agent in agents]
    return max((code if code >= 0 else 128 - code for code in codes), default=0)


def agent_environment(index: int, slots: int, devices: list[str]) -> Mapping[str, str]:
    """The environment of one agent: the user's own, its share of the machine, and patience."""
    environment = {**_PATIENT, **slot_environment(index, slots, devices)}
    binaries = str(Path(sys.executable).parent)  # agents start `python`, which should be this one
    environment["PATH"] = os.pathsep.join([binaries, environment.get("PATH", os.defpath)])
    return environment


def _wait(agent: "subprocess.Popen[bytes]") -> int:
    while True:
        try:
            return agent.wait()
        except KeyboardInterrupt:
            continue  # the terminal has told the agents as well


@contextmanager
def _passing_on(agents: "list[subprocess.Popen[bytes]]") -> Iterator[None]:
    """SIGTERM goes to the agents, which pass it on to their runs."""

    def tell(number: int, _: FrameType | None) -> None:
        for agent in agents:
            if agent.poll() is None:
                agent.send_signal(number)

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
