"""What only torch and transformers know, asked of another process: a plan itself imports neither.

The process (:mod:`prunegpt.training.answers`) is started at the first question, which takes some seconds, and answers
as long as it is asked.
"""

import json
import os
import selectors
import subprocess
import sys
from functools import cache
from threading import Lock
from typing import IO, Any

_PATIENCE = 120.0  # seconds for an answer: torch is read from a disk that may be slow


@cache
def answer(question: str) -> Any:
    """The answer to a question in JSON; None where there is none: the stage will say what is wrong."""
    with _LOCK:
        line = _asked(question) or _asked(question)  # it ends by itself when it is not asked for long
    return json.loads(line) if line else None


_LOCK = Lock()
_running: list[tuple[subprocess.Popen[str], IO[str]]] = []  # at most one, and what it answers


def _asked(question: str) -> str:
    """A line of answer; empty where the process has ended, or does not answer in time."""
    if not _running:
        reading, writing = os.pipe()  # not its output: libraries print there, some when they are imported
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "prunegpt.training.answers", str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=[writing],
            start_new_session=True,  # Ctrl-C is for the one who asks; an end of its input ends it
        )
        os.close(writing)
        _running.append((process, os.fdopen(reading, encoding="utf-8")))
    process, answers = _running[0]
    assert process.stdin
    line = ""
    try:
        process.stdin.write(question + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as ready:
            ready.register(answers, selectors.EVENT_READ)
            line = answers.readline() if ready.select(_PATIENCE) else ""
    except OSError:
        pass
    if not line:
        process.kill()
        process.communicate()
        answers.close()
        _running.clear()
    return line
