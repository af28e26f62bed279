"""The far end of a warm worker: one process that runs one attempt after another.

It is handed folders as JSON lines on standard input and answers each with a line on standard output. While an attempt
runs, everything that the process writes, C code and children included, goes to the attempt's log.txt.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from prunegpt.launch.log import LOG

PARENT_VARIABLE = "PRUNEGPT_PARENT"  # process id of the launcher
LEAVING_VARIABLE = "PRUNEGPT_LEAVING"  # seconds, and processes whose memory of a GPU is waited for so long
_SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
_QUERY = ("--query-compute-apps=pid", "--format=csv,noheader")
_ANSWER = 5.0  # seconds that nvidia-smi gets
_LOOK = 0.5  # seconds between questions to it


def serve_attempts(run: Callable[[Path], str]) -> None:
    """Runs attempts until standard input ends.

    Args:
        run: runs the attempt in a folder and gives the state it ended in; its exceptions are logged and answered
            as `failed`.
    """
    die_with_parent()
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    _point(0, os.open(os.devnull, os.O_RDONLY))  # a child must not read our requests
    os.dup2(2, 1)  # nor must a stray print be taken for an answer
    seconds, *processes = os.environ.pop(LEAVING_VARIABLE, "0").split()
    end, leaving = time.monotonic() + float(seconds), {int(process) for process in processes}
    while time.monotonic() < end and holding(leaving):
        time.sleep(_LOOK)
    for line in requests:
        folder = Path(json.loads(line)["folder"])
        with logging_to(folder / LOG):
            try:
                state = run(folder)
            except Exception:
                traceback.print_exc()
                state = "failed"
        answers.write(json.dumps({"folder": str(folder), "state": state}) + "\n")


def holding(processes: Collection[int]) -> set[int]:
    """Of these processes, those that hold memory of a GPU, which the driver takes seconds to give back after their end.

    None where nvidia-smi is not there, or does not answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None or not processes:
        return set()
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, check=False, timeout=_ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    listed = {int(line) for line in done.stdout.split() if line.isdigit()}
    return listed & set(processes)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Everything written to standard output and error inside the block is appended to a file."""
    _flush()
    before = os.dup(1), os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    _point(2, log)
    try:
        yield
    finally:
        _flush()
        _point(1, before[0])
        _point(2, before[1])


def die_with_parent() -> None:
    """Lets this process be killed when the launcher's process ends, however that ends.

    On Linux the kernel does it; elsewhere a thread looks every second. Does nothing where no launcher is named.
    """
    parent = int(os.environ.get(PARENT_VARIABLE, "0"))
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _point(descriptor: int, source: int) -> None:
    os.dup2(source, descriptor)
    os.close(source)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
