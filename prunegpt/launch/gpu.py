"""Memory of GPUs that processes still hold after they have died: the driver takes seconds to give it back."""

import contextlib
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

_QUERY = ("--query-compute-apps=pid", "--format=csv,noheader")
_PATIENCE = 5.0  # seconds for an answer


def holding(processes: Collection[int]) -> set[int]:
    """Of these processes, those that nvidia-smi says hold memory of a GPU; none where it cannot be asked."""
    program = shutil.which("nvidia-smi")
    if program is None or not processes:
        return set()
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    listed = {int(line) for line in done.stdout.split() if line.isdigit()}
    return listed & set(processes)


def group_of(leader: int) -> set[int]:
    """The processes of a process group, as far as the system tells."""
    found = {leader}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            group = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[2]
            if int(group) == leader:
                found.add(int(stat.parent.name))
    return found
