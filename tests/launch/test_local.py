"""What the local launcher does beside what every launcher does: warm workers, slots, dying with its parent."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prunegpt.errors import LaunchError
from prunegpt.launch.choose import local
from prunegpt.launch.local import LocalLauncher, cuda_devices, slot_environment
from prunegpt.launch.log import last_lines
from prunegpt.registry import LAUNCHERS
from prunegpt.root import Root
from tests.support.waiting import ends, until, written

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
PID = "(folder / 'pid').write_text(str(os.getpid()))"


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalLauncher]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    launcher = LocalLauncher(Root(tmp_path / "runs"), command=WORKER)
    yield launcher
    launcher.close()


@pytest.fixture
def pid_after(launcher: LocalLauncher, tmp_path: Path) -> Callable[[str], int]:
    """Runs an attempt that ends as told; gives the process it ran in."""

    def runner(do: str) -> int:
        folder = tmp_path / f"attempt-{len(list(tmp_path.glob('attempt-*'))) + 1}"
        folder.mkdir()
        (folder / "do.txt").write_text(f"{PID}\n{do}")
        handle = launcher.submit(folder)
        until(lambda: launcher.poll(handle))
        return int((folder / "pid").read_text())

    return runner


def test_it_is_registered() -> None:
    assert LAUNCHERS.load("local") is local


@pytest.mark.parametrize("state", ["finished", "diverged"])
def test_a_sound_worker_is_kept(pid_after: Callable, state: str) -> None:
    assert pid_after(f"state = {state!r}") == pid_after("pass")


@pytest.mark.parametrize("do", ["state = 'failed'", "raise MemoryError", "state = 'stopped'", "os._exit(0)"])
def test_a_worker_is_thrown_away_after_any_other_end(pid_after: Callable, do: str) -> None:
    assert pid_after(do) != pid_after("pass")


def test_a_worker_that_died_between_attempts_is_replaced(pid_after: Callable) -> None:
    first = pid_after("pass")
    os.kill(first, signal.SIGKILL)
    ends(first)
    assert pid_after("pass") != first


def test_a_thrown_away_worker_gets_time_to_end_by_itself(pid_after: Callable, tmp_path: Path) -> None:
    pid_after(f"import atexit\natexit.register(lambda: open({str(tmp_path / 'bye')!r}, 'w').close())\nstate = 'failed'")
    pid_after("pass")
    assert (tmp_path / "bye").exists()


def test_prints_between_attempts_are_no_answers(pid_after: Callable, launcher: LocalLauncher, tmp_path: Path) -> None:
    folder = tmp_path / "attempt-2"
    answer = json.dumps({"folder": str(folder), "state": "failed"})
    pid_after(f"import threading\nthreading.Timer(0.3, print, [{answer!r}]).start()")
    folder.mkdir()
    (folder / "do.txt").write_text("time.sleep(0.6)")
    handle = launcher.submit(folder)
    exited = until(lambda: launcher.poll(handle))
    assert exited.reason == "ended"


def test_a_worker_that_cannot_start_leaves_its_words_in_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    launcher = LocalLauncher(Root(tmp_path / "runs"), command=(sys.executable, "-c", "import no_such_module"))
    handle = launcher.submit(folder)
    exited = until(lambda: launcher.poll(handle))
    launcher.close()
    assert (exited.reason, exited.code) == ("failed", 1)
    assert "No module named 'no_such_module'" in (folder / "log.txt").read_text()


def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"worker '/nowhere/python' did not start"):
        LocalLauncher(Root(tmp_path), command=("/nowhere/python",)).submit(tmp_path)


def test_it_needs_a_slot(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="at least 1 slot, got 0"):
        LocalLauncher(Root(tmp_path), 0)


def test_slots_share_processors_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    processors = len(os.sched_getaffinity(0))
    assert slot_environment(0, 2, [])["OMP_NUM_THREADS"] == str(max(1, processors // 2))
    assert "CUDA_VISIBLE_DEVICES" not in slot_environment(0, 2, [])
    given = [slot_environment(index, 2, ["0", "1", "2", "3"])["CUDA_VISIBLE_DEVICES"] for index in range(2)]
    assert given == ["0,2", "1,3"]
    given = [slot_environment(index, 3, ["0", "1"])["CUDA_VISIBLE_DEVICES"] for index in range(3)]
    assert given == ["0", "1", "0"]
    assert slot_environment(0, 1, ["0", "1"])["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "OMP_NUM_THREADS" not in slot_environment(0, 1, [])
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert slot_environment(0, 2, [])["OMP_NUM_THREADS"] == "7"
    assert slot_environment(0, 2, [], 3)["OMP_NUM_THREADS"] == "3"


def test_devices_are_those_the_environment_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 3")
    assert cuda_devices() == ["GPU-a", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda_devices() == []


def test_cards_of_both_makers_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("prunegpt.launch.local.NVIDIA", tmp_path / "nvidia")
    monkeypatch.setattr("prunegpt.launch.local.AMD", tmp_path / "amd")
    assert cuda_devices() == []
    for node, units in enumerate((0, 304, 304)):  # the first is the processor
        (tmp_path / "amd" / str(node)).mkdir(parents=True)
        (tmp_path / "amd" / str(node) / "properties").write_text(f"cpu_cores_count 8\nsimd_count {units}\n")
    assert cuda_devices() == ["0", "1"]
    for card in ("a", "b", "c"):
        (tmp_path / "nvidia" / card).mkdir(parents=True)
    assert cuda_devices() == ["0", "1", "2"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread looks every second")
def test_workers_die_with_their_coordinator(tmp_path: Path) -> None:
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    (folder / "do.txt").write_text(f"{PID}\ntime.sleep(600)")
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from prunegpt.launch.local import LocalLauncher\nfrom prunegpt.root import Root\n"
        f"LocalLauncher(Root(Path({str(tmp_path)!r})), command={WORKER!r}).submit(Path({str(folder)!r}))\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    coordinator = subprocess.Popen([sys.executable, "-c", program], env=environment)
    worker = int(written(folder / "pid"))
    coordinator.kill()
    coordinator.wait()
    ends(worker)


def test_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("".join(f"line {index}\n" for index in range(100_000)))
    assert last_lines(log, 2) == "line 99998\nline 99999"
    assert last_lines(tmp_path / "none.txt") == ""


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
