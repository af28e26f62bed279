"""The far end of an attempt on a cluster: output, signals, and the note of how it ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prunegpt.launch.job import TRIAL, Ended, Job
from tests.support.waiting import ends, written

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
PATIENCE = 60.0
DEAF_BUT_FOR_TERM = (
    "import signal, subprocess\n"
    "asked = []\n"
    "signal.signal(signal.SIGTERM, lambda *_: asked.append(1))\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "(folder / 'pid').write_text(f'{os.getpid()} {child.pid}')\n"
    "while not asked: time.sleep(0.01)\n"
    "print('child lives' if child.poll() is None else 'child is dead', flush=True)\n"
    "state = 'stopped'\n"
)


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def make(do: str) -> Path:
        folder = tmp_path / "attempt-1"
        folder.mkdir()
        (folder / "do.txt").write_text(do)
        return folder

    return make


def pids(folder: Path) -> list[int]:
    return list(map(int, written(folder / "pid").split()))


@pytest.mark.parametrize(
    ("do", "ended"),
    [
        ("print('fine')", Ended(0)),
        ("state = 'failed'", Ended(1)),
        ("os._exit(7)", Ended(7)),
        ("os.kill(os.getpid(), 9)", Ended(None, 9)),
    ],
)
def test_the_end_is_noted(attempt: Callable[[str], Path], do: str, ended: Ended) -> None:
    folder = attempt(do)
    assert Job(folder, WORKER).wait() == ended
    assert Ended.read(folder) == ended


def test_children_that_are_left_are_ended(attempt: Callable[[str], Path]) -> None:
    folder = attempt(
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "(folder / 'pid').write_text(str(child.pid))"
    )
    assert Job(folder, WORKER).wait() == Ended(0)
    ends(pids(folder)[0])


def test_an_option_is_given_to_this_interpreter(attempt: Callable[[str], Path]) -> None:
    assert TRIAL[0].startswith("-")
    folder = attempt("")
    assert Job(folder, ("-c", "import sys; print(sys.argv[1])")).wait() == Ended(0)
    assert (folder / "log.txt").read_text() == f"{folder}\n"


def test_it_dies_with_its_parent(attempt: Callable[[str], Path]) -> None:
    folder = attempt("(folder / 'pid').write_text(str(os.getpid()))\ntime.sleep(600)")
    program = f"from prunegpt.launch.job import *\nJob(Path({str(folder)!r}), {WORKER!r}).wait()"
    parent = subprocess.Popen([sys.executable, "-c", program])
    (pid,) = pids(folder)
    parent.kill()
    parent.wait()
    ends(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_schedulers_signals_ask_the_trial_alone(attempt: Callable[[str], Path], number: signal.Signals) -> None:
    """Schedulers signal every process of a job; only SIGTERM of ours means something to the trial."""
    folder = attempt(DEAF_BUT_FOR_TERM)
    program = f"from prunegpt.launch.job import run_job; run_job({str(folder)!r}, {WORKER!r})"
    job = subprocess.Popen([sys.executable, "-c", program])
    everybody = pids(folder)
    if number != signal.SIGTERM:
        for pid in everybody:
            os.kill(pid, number)
        time.sleep(0.1)
    job.send_signal(number)
    assert job.wait(PATIENCE) == 1
    assert Ended.read(folder) == Ended(1, None, (number.name,))
    assert (folder / "log.txt").read_text() == "child lives\n"
    ends(everybody[1])
