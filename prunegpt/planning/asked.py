"""What only torch and transformers know, asked of another process: a plan itself imports neither.

The process (:mod:`prunegpt.training.answers`) is started at the first question, which takes some seconds, and answers
as long as it is asked.
"""

import json
import selectors
import subprocess
import sys
from functools import cache
from threading import Lock
from typing import Any

_PATIENCE = 120.0  # seconds for an answer: torch is read from a disk that may be slow


@cache
def answer(question: str) -> Any:
    """The answer to a question in JSON; None where there is none: the stage will say what is wrong."""
    with _LOCK:
        line = _asked(question) or _asked(question)  # it ends by itself when it is not asked for long
    return json.loads(line) if line else None


_LOCK = Lock()
_running: list[subprocess.Popen[str]] = []  # at most one


def _asked(question: str) -> str:
    """A line of answer; empty where the process has ended, or does not answer in time."""
    if not _running:
        _running.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "prunegpt.training.answers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for the one who asks; an end of its input ends it
            )
        )
    process = _running[0]
    assert process.stdin
    assert process.stdout
    line = ""
    try:
        process.stdin.write(question + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if ready.select(_PATIENCE) else ""
    except OSError:
        pass
    if not line:
        process.kill()
        process.communicate()
        _running.clear()
    return line
