"""What every launcher must do. A new one adds its maker to MAKERS."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prunegpt.errors import LaunchError
from prunegpt.launch.base import Exited, Launcher
from prunegpt.launch.local import LocalLauncher
from prunegpt.launch.refusal import passes
from prunegpt.registry import LAUNCHERS
from prunegpt.root import Root
from prunegpt.spec.execution import SlurmOptions
from tests.support.waiting import ends, until, written

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def local(root: Root, slots: int) -> Launcher:
    return LocalLauncher(root, slots, command=WORKER)


def slurm(root: Root, slots: int) -> Launcher:
    from prunegpt.launch.slurm import SlurmLauncher

    return SlurmLauncher(root, slots, options=SlurmOptions(poll=0.3), command=WORKER, settle=1.0)


def ray(root: Root, slots: int) -> Launcher:
    from prunegpt.launch.ray import RayLauncher

    return RayLauncher(root, slots, command=WORKER)


MAKERS: dict[str, Callable[[Root, int], Launcher]] = {"local": local, "slurm": slurm, "ray": ray}
NEEDS = {
    "slurm": "slurm_cluster",
    "ray": "ray_cluster",
}  # fixtures that start, or skip with a reason, what a launcher needs
PATIENCE = 60.0  # seconds; only ever waited for when something is broken
KINDS = [pytest.param(kind, marks=pytest.mark.slow if kind in NEEDS else ()) for kind in MAKERS]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    if request.param in NEEDS:
        request.getfixturevalue(NEEDS[request.param])
    made: list[Launcher] = []

    def maker(slots: int = 1) -> Launcher:
        made.append(MAKERS[request.param](Root(tmp_path / "runs"), slots))
        return made[-1]

    yield maker
    for launcher in made:
        launcher.close()


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[str], Path]:
    """Makes the folder of an attempt that does what it is told."""

    def maker(do: str) -> Path:
        folder = tmp_path / f"attempt-{len(list(tmp_path.glob('attempt-*'))) + 1}"
        folder.mkdir()
        (folder / "do.txt").write_text(do)
        return folder

    return maker


def wait(launcher: Launcher, handle: str) -> Exited:
    return until(lambda: launcher.poll(handle), "the end of the attempt")  # type: ignore[return-value]


def test_there_is_a_launcher_to_test() -> None:
    assert set(MAKERS) >= set(LAUNCHERS.names())


def test_it_is_a_launcher(make: Callable) -> None:
    launcher = make(3)
    assert isinstance(launcher, Launcher)
    assert launcher.slots == 3


def test_an_attempt_runs_and_ends(make: Callable, attempt: Callable) -> None:
    launcher = make()
    folder = attempt("(folder / 'done').write_text('yes')")
    handle = launcher.submit(folder)
    assert wait(launcher, handle).reason == "ended"
    assert (folder / "done").read_text() == "yes"
    assert launcher.poll(handle).reason == "ended"


def test_poll_does_not_wait(make: Callable, attempt: Callable) -> None:
    launcher = make()
    handle = launcher.submit(attempt("time.sleep(60)"))
    assert launcher.poll(handle) is None


def test_attempts_follow_each_other(make: Callable, attempt: Callable) -> None:
    launcher = make()
    for index in range(5):
        folder = attempt(f"(folder / 'done').write_text('{index}')")
        wait(launcher, launcher.submit(folder))
        assert (folder / "done").read_text() == str(index)


def test_as_many_run_at_a_time_as_there_are_slots(make: Callable, attempt: Callable) -> None:
    launcher = make(2)
    meet = "(folder.parent / f'here-{os.getpid()}').touch()\nwhile len(list(folder.parent.glob('here-*'))) < 2: pass"
    handles = [launcher.submit(attempt(meet)) for _ in range(2)]
    with pytest.raises(LaunchError, match="at most 2 attempts run at a time"):
        launcher.submit(attempt("pass"))
    assert {wait(launcher, handle).reason for handle in handles} == {"ended"}
    assert wait(launcher, launcher.submit(attempt("pass"))).reason == "ended"


def test_output_goes_to_the_log_of_the_attempt(make: Callable, attempt: Callable) -> None:
    launcher = make()
    folders = [
        attempt("print('one')"),
        attempt("print('two', file=sys.stderr)"),
        attempt("os.system('echo three')"),
        attempt("os.write(1, b'four')"),
    ]
    for folder in folders:
        wait(launcher, launcher.submit(folder))
    assert [(folder / "log.txt").read_text().strip() for folder in folders] == ["one", "two", "three", "four"]


def test_a_failure_shows_in_its_log(make: Callable, attempt: Callable) -> None:
    launcher = make()
    folder = attempt("raise ValueError('this is why')")
    assert wait(launcher, launcher.submit(folder)).reason == "failed"
    assert "this is why" in (folder / "log.txt").read_text()


def test_an_exit_code_is_told(make: Callable, attempt: Callable) -> None:
    launcher = make()
    folder = attempt("print('last words', flush=True)\nos._exit(7)")
    assert wait(launcher, launcher.submit(folder)) == Exited("failed", code=7)
    assert "last words" in (folder / "log.txt").read_text()


def test_a_killed_worker_is_noticed_and_replaced(make: Callable, attempt: Callable) -> None:
    launcher = make()
    folder = attempt("(folder / 'pid').write_text(str(os.getpid()))\ntime.sleep(60)")
    handle = launcher.submit(folder)
    os.kill(int(written(folder / "pid")), signal.SIGKILL)
    assert wait(launcher, handle) == Exited("signal", signal=signal.SIGKILL)
    assert wait(launcher, launcher.submit(attempt("pass"))).reason == "ended"


def test_cancel_asks_first(make: Callable, attempt: Callable) -> None:
    launcher = make()
    folder = attempt(
        "import signal\n"
        "stop = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: stop.append(1))\n"
        "(folder / 'ready').write_text('yes')\n"
        "while not stop: time.sleep(0.01)\n"
        "(folder / 'checkpoint').write_text('written')\n"
        "state = 'stopped'\n"
    )
    handle = launcher.submit(folder)
    written(folder / "ready")
    launcher.cancel(handle)
    assert wait(launcher, handle).reason == "cancelled"
    assert (folder / "checkpoint").read_text() == "written"
    assert wait(launcher, launcher.submit(attempt("pass"))).reason == "ended"


def test_cancel_with_kill_does_not_ask(make: Callable, attempt: Callable) -> None:
    launcher = make()
    folder = attempt(
        "import signal, subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "(folder / 'ready').write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    handle = launcher.submit(folder)
    child = int(written(folder / "ready"))
    launcher.cancel(handle)
    time.sleep(0.1)
    assert launcher.poll(handle) is None
    launcher.cancel(handle, kill=True)
    assert wait(launcher, handle).reason == "cancelled"
    ends(child)


def test_cancelling_what_has_ended_does_nothing(make: Callable, attempt: Callable) -> None:
    launcher = make()
    handle = launcher.submit(attempt("pass"))
    wait(launcher, handle)
    launcher.cancel(handle, kill=True)
    assert launcher.poll(handle).reason == "ended"


def test_an_unknown_handle_is_refused(make: Callable) -> None:
    with pytest.raises(LaunchError, match="must come from this launcher's submit, got 'nothing'"):
        make().poll("nothing")


REFUSERS: dict[str, Callable[[pytest.MonkeyPatch, Launcher], object]] = {
    "local": lambda patch, _: patch.setattr("subprocess.Popen.__init__", busy),
    "slurm": lambda patch, _: patch.setattr("subprocess.Popen.__init__", busy),
    "ray": lambda patch, launcher: patch.setattr(launcher._ray, "remote", busy),
}  # how the system below a launcher is made to refuse an attempt


def busy(*_: object, **__: object) -> None:
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


def test_every_launcher_can_be_refused_an_attempt() -> None:
    assert set(REFUSERS) >= set(LAUNCHERS.names())


def test_what_is_refused_for_now_takes_no_slot_and_runs_later(
    make: Callable, attempt: Callable, request: pytest.FixtureRequest
) -> None:
    launcher, folder = make(), attempt("(folder / 'done').touch()")
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            REFUSERS[request.node.callspec.params["make"]](patch, launcher)
            with pytest.raises((LaunchError, OSError)) as refused:
                launcher.submit(folder)
        assert passes(refused.value)
    assert wait(launcher, launcher.submit(folder)).reason == "ended"
    assert (folder / "done").exists()


def test_what_is_refused_harms_none_that_runs(
    make: Callable, attempt: Callable, request: pytest.FixtureRequest
) -> None:
    launcher = make(2)
    first = attempt("while not (folder / 'go').exists(): time.sleep(0.01)")
    handle = launcher.submit(first)
    with pytest.MonkeyPatch.context() as patch:
        REFUSERS[request.node.callspec.params["make"]](patch, launcher)
        with pytest.raises((LaunchError, OSError)):
            launcher.submit(attempt("pass"))
    assert launcher.poll(handle) is None
    (first / "go").touch()
    assert wait(launcher, handle).reason == "ended"


def test_close_ends_what_runs(make: Callable, attempt: Callable) -> None:
    launcher = make(2)
    folders = [attempt("(folder / 'pid').write_text(str(os.getpid()))\ntime.sleep(600)") for _ in range(2)]
    for folder in folders:
        launcher.submit(folder)
    pids = [int(written(folder / "pid")) for folder in folders]
    launcher.close()
    for pid in pids:
        ends(pid)
