"""A real worker on a machine with little memory: what it takes beyond its libraries is limited. small_worker.py MB"""

import resource
import sys
from pathlib import Path

import torch

import prunegpt.stages.graph  # noqa: F401  imported before the limit, as on a machine where they fit
from prunegpt.launch.worker import serve_attempts
from prunegpt.trial import run_trial


def limit(megabytes: int) -> None:
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    room = int(held.split()[1]) * 1024 + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (room, room))


if __name__ == "__main__":
    torch.set_num_threads(1)
    limit(int(sys.argv[1]))
    serve_attempts(lambda folder: run_trial(folder).state)
