"""The next attempt of a GPU slot starts when the memory of a dead worker is back; nvidia-smi is a script here."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prunegpt.launch import local
from prunegpt.launch.base import Exited
from prunegpt.launch.local import LocalLauncher
from prunegpt.launch.process import group_of
from prunegpt.launch.worker import holding
from prunegpt.root import Root
from tests.support.waiting import until

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
PID = "(folder / 'pid').write_text(str(os.getpid()))"
CHILD = (
    "import subprocess\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "(folder / 'child').write_text(str(child.pid))\n"
)


@pytest.fixture
def holders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file: what stands in it is what nvidia-smi says of compute processes; the times it was asked are beside it."""
    listed, program = tmp_path / "holders", tmp_path / "bin" / "nvidia-smi"
    listed.write_text("")
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {listed}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return listed


@pytest.fixture
def launcher(tmp_path: Path, holders: Path) -> Iterator[LocalLauncher]:  # its workers ask that nvidia-smi
    launcher = LocalLauncher(Root(tmp_path / "runs"), command=WORKER, devices=["0"])
    yield launcher
    launcher.close()


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[str], Path]:
    def maker(do: str) -> Path:
        folder = tmp_path / f"attempt-{len(list(tmp_path.glob('attempt-*'))) + 1}"
        folder.mkdir()
        (folder / "do.txt").write_text(f"{PID}\n{do}")
        return folder

    return maker


def wait(launcher: LocalLauncher, handle: str) -> Exited | None:
    return until(lambda: launcher.poll(handle), "the end of the attempt")


def questions(folder: Path) -> list[str]:
    """What nvidia-smi has been asked so far."""
    return (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []


def is_asked_again(folder: Path) -> None:
    """Waits until nvidia-smi has been asked twice more: the first question may have begun before."""
    before = len(questions(folder))
    until(lambda: len(questions(folder)) >= before + 2, "further questions")


def die(launcher: LocalLauncher, folder: Path) -> int:
    """Runs an attempt to a violent end; gives its process."""
    assert wait(launcher, launcher.submit(folder)) == Exited("signal", signal=signal.SIGKILL)
    return int((folder / "pid").read_text())


def test_the_next_attempt_waits_for_the_memory(
    launcher: LocalLauncher, attempt: Callable[[str], Path], holders: Path, tmp_path: Path
) -> None:
    dead = attempt(f"{CHILD}{PID}\nos.kill(os.getpid(), 9)")
    holders.write_text("")
    pid = die(launcher, dead)
    holders.write_text(f"4000000\n{pid}\n")
    folder = attempt("pass")
    handle = launcher.submit(folder)
    is_asked_again(tmp_path)
    assert launcher.poll(handle) is None
    assert not (folder / "pid").exists()
    holders.write_text(f"{(dead / 'child').read_text()}\n")  # its child held some too
    is_asked_again(tmp_path)
    assert launcher.poll(handle) is None
    holders.write_text("4000000\n")
    assert wait(launcher, handle) == Exited("ended")
    assert (folder / "pid").exists()
    assert len(questions(tmp_path)) <= 12  # and not without a pause
    assert set(questions(tmp_path)) == {"--query-compute-apps=pid --format=csv,noheader"}


def test_the_wait_has_an_end(
    launcher: LocalLauncher,
    attempt: Callable[[str], Path],
    holders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "MEMORY_PATIENCE", 1.0)
    dead = attempt("os.kill(os.getpid(), 9)")
    pid = die(launcher, dead)
    holders.write_text(f"{pid}\n")
    assert wait(launcher, launcher.submit(attempt("pass"))) == Exited("ended")
    assert len(questions(tmp_path)) >= 2


def test_an_attempt_that_waits_for_memory_can_be_cancelled(
    launcher: LocalLauncher, attempt: Callable[[str], Path], holders: Path
) -> None:
    pid = die(launcher, attempt("os.kill(os.getpid(), 9)"))
    holders.write_text(f"{pid}\n")
    folder = attempt("pass")
    handle = launcher.submit(folder)
    launcher.cancel(handle)
    exited = wait(launcher, handle)
    assert exited is not None
    assert exited.reason == "cancelled"
    holders.write_text("")
    assert wait(launcher, launcher.submit(attempt("pass"))) == Exited("ended")
    assert not (folder / "pid").exists()


def test_a_sound_worker_is_not_waited_for(
    launcher: LocalLauncher, attempt: Callable[[str], Path], holders: Path, tmp_path: Path
) -> None:
    folder = attempt("pass")
    assert wait(launcher, launcher.submit(folder)) == Exited("ended")
    holders.write_text((folder / "pid").read_text())
    again = attempt("pass")
    assert wait(launcher, launcher.submit(again)) == Exited("ended")
    assert (again / "pid").read_text() == (folder / "pid").read_text()
    assert not (tmp_path / "asked").exists()


def test_without_gpus_nobody_is_asked(tmp_path: Path, attempt: Callable[[str], Path], holders: Path) -> None:
    launcher = LocalLauncher(Root(tmp_path / "runs"), command=WORKER, devices=[])
    try:
        die(launcher, attempt("os.kill(os.getpid(), 9)"))
        assert wait(launcher, launcher.submit(attempt("pass"))) == Exited("ended")
    finally:
        launcher.close()
    assert not (tmp_path / "asked").exists()


def test_what_nvidia_smi_says_is_read(holders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holders.write_text("12\n[Not Found]\n34\n")
    assert holding({34, 56}) == {34}
    holders.write_text("No running processes found\n")
    assert holding({34}) == set()
    monkeypatch.setenv("PATH", "/nowhere")
    assert holding({34}) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_group_is_its_leader_and_its_children() -> None:
    assert os.getpid() in group_of(os.getpgid(0))
    assert group_of(4_000_000) == {4_000_000}
