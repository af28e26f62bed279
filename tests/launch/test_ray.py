"""Ray: a node that dies, resources that are missing, a cluster of our own, and a real sweep that is disturbed."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prunegpt.errors import LaunchError
from prunegpt.launch.base import Exited
from prunegpt.launch.ray import RayLauncher
from prunegpt.root import Root
from prunegpt.spec.execution import RayOptions
from prunegpt.sweep.events import AttemptProgress, Event
from tests.launch.real_sweep import STEPS, run, run_locally, small_plan
from tests.support.waiting import ends, lives, until

pytestmark = pytest.mark.slow
WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
ON_NODE = RayOptions(resources={"second": 1})
PATIENCE = 90.0


@pytest.fixture
def node(ray_cluster: Any) -> Iterator[Any]:
    """A second node, which alone has the resource `second`."""
    added = ray_cluster.add_node(num_cpus=1, num_gpus=0, resources={"second": 1}, object_store_memory=80_000_000)
    ray_cluster.wait_for_nodes()
    yield added
    if added in ray_cluster.worker_nodes:
        ray_cluster.remove_node(added)


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[str], Path]:
    def make(do: str) -> Path:
        folder = tmp_path / f"attempt-{len(list(tmp_path.glob('attempt-*'))) + 1}"
        folder.mkdir()
        (folder / "do.txt").write_text(do)
        return folder

    return make


def wait(launcher: RayLauncher, handle: str) -> Exited:
    until(lambda: launcher.poll(handle), "the end")
    exited = launcher.poll(handle)
    assert exited is not None
    return exited


def test_an_attempt_on_a_node_that_dies_is_lost(
    ray_cluster: Any, node: Any, tmp_path: Path, attempt: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    launcher = RayLauncher(Root(tmp_path), 2, options=ON_NODE, command=WORKER)
    folder = attempt("(folder / 'pid').write_text(str(os.getpid()))\ntime.sleep(600)")
    handle = launcher.submit(folder)
    until(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
    capfd.readouterr()
    ray_cluster.remove_node(node, allow_graceful=False)
    assert wait(launcher, handle) == Exited("lost")
    assert "actor died" in (folder / "log.txt").read_text()
    until(lambda: not lives(int((folder / "pid").read_text())), "the end of its process")
    launcher.close()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")  # Ray keeps its words to itself


def test_an_attempt_waits_for_resources_and_can_be_cancelled_there(
    ray_cluster: Any, node: Any, tmp_path: Path, attempt: Callable[[str], Path]
) -> None:
    launcher = RayLauncher(Root(tmp_path), 3, options=ON_NODE, command=WORKER)
    first = launcher.submit(attempt("while not (folder / 'go').exists(): time.sleep(0.1)"))
    waiting, last = attempt("pass"), attempt("pass")
    second, third = launcher.submit(waiting), launcher.submit(last)
    assert launcher.poll(second) is None
    launcher.cancel(second)
    assert wait(launcher, second) == Exited("cancelled")
    (tmp_path / "attempt-1" / "go").touch()
    assert wait(launcher, first).reason == "ended"
    assert wait(launcher, third).reason == "ended"
    assert not (waiting / "log.txt").exists() or "pass" not in (waiting / "log.txt").read_text()
    launcher.close()


def test_slots_are_what_the_nodes_have_room_for(ray_cluster: Any, tmp_path: Path) -> None:
    assert RayLauncher(Root(tmp_path)).slots == 4
    assert RayLauncher(Root(tmp_path), options=RayOptions(cpus=3)).slots == 1
    assert RayLauncher(Root(tmp_path), 9, options=RayOptions(cpus=3)).slots == 9
    with pytest.raises(LaunchError, match=r"onto one node of the Ray cluster; none of its 1 has 5 CPU\. "):
        RayLauncher(Root(tmp_path), options=RayOptions(cpus=5))
    with pytest.raises(LaunchError, match=r"has 1 CPU, 2 GPU"):
        RayLauncher(Root(tmp_path), gpus=2)


def test_a_command_that_does_not_start_is_a_failure(
    ray_cluster: Any, tmp_path: Path, attempt: Callable[[str], Path]
) -> None:
    launcher = RayLauncher(Root(tmp_path), 1, command=("/nowhere/python",))
    folder = attempt("pass")
    assert wait(launcher, launcher.submit(folder)).reason == "failed"
    assert "/nowhere/python" in (folder / "log.txt").read_text()
    launcher.close()


def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    program = (
        "from pathlib import Path\nfrom prunegpt.errors import LaunchError\n"
        "from prunegpt.launch.ray import RayLauncher\nfrom prunegpt.root import Root\n"
        "from prunegpt.spec.execution import RayOptions\n"
        f"try:\n    RayLauncher(Root(Path('.')), options=RayOptions(address={address!r}))\n"
        "except LaunchError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert f"the launcher ray found no cluster at '{address}'" in done.stdout
    assert "Connection refused" in done.stdout
    assert done.stderr == ""


def test_a_cluster_of_our_own_is_started_quietly_and_ended(tmp_path: Path, attempt: Callable[[str], Path]) -> None:
    folder = attempt("(folder / 'pid').write_text(str(os.getppid()))")
    program = (
        "import signal, time\nfrom pathlib import Path\n"
        "from prunegpt.launch.ray import RayLauncher\nfrom prunegpt.root import Root\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        f"launcher = RayLauncher(Root(Path('.')), 1, command={WORKER!r})\n"
        "assert signal.getsignal(signal.SIGTERM) == before\n"
        f"handle = launcher.submit(Path({str(folder)!r}))\n"
        "while launcher.poll(handle) is None: time.sleep(0.05)\n"
        "print(launcher.poll(handle).reason)\n"
        "launcher.close()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)
    until(lambda: not lives(int((folder / "pid").read_text())), "the end of the cluster")


@pytest.mark.parametrize("own", [True, False], ids=["own cluster", "existing cluster"])
def test_nothing_outlives_a_coordinator_that_is_killed(
    ray_cluster: Any, tmp_path: Path, attempt: Callable[[str], Path], own: bool
) -> None:
    """Actors are not detached: they, and the processes of their attempts, die with the process that made them."""
    folder = attempt("(folder / 'pid').write_text(str(os.getpid()))\ntime.sleep(600)")
    options = "RayOptions()" if own else f"RayOptions(address={ray_cluster.address!r})"
    program = (
        "import time\nfrom pathlib import Path\n"
        "from prunegpt.launch.ray import RayLauncher\nfrom prunegpt.root import Root\n"
        "from prunegpt.spec.execution import RayOptions\n"
        f"launcher = RayLauncher(Root(Path({str(tmp_path)!r})), 1, options={options}, command={WORKER!r})\n"
        f"launcher.submit(Path({str(folder)!r}))\ntime.sleep(600)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    coordinator = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        until(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), "the attempt")
    finally:
        coordinator.kill()
        coordinator.wait()
    ends(int((folder / "pid").read_text()))


def test_a_sweep_that_loses_a_node_comes_to_the_same_result(
    ray_cluster: Any,
    node: Any,
    tmp_path: Path,
    model_folder: Path,
    text_files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what Ray gives to one CPU; arithmetic depends on it
    plan = partial(small_plan, model=model_folder, files=text_files)
    root = Root(tmp_path / "ray")
    killed: list[int] = []

    def kill(event: Event) -> None:
        checkpoints = list(root.path.glob("work/*/checkpoint-*/prunegpt.json"))
        if isinstance(event, AttemptProgress) and 0 < event.step < STEPS and checkpoints and not killed:
            killed.append(event.step)
            ray_cluster.remove_node(node, allow_graceful=False)
            ray_cluster.add_node(num_cpus=1, num_gpus=0, resources={"second": 1}, object_store_memory=80_000_000)

    found = run(plan(root), root, RayLauncher(root, 1, options=ON_NODE), kill)
    assert killed
    assert found.states == {"pruned": "finished", "zero-shot": "finished"}
    assert found.repeated == {"small/pruned": ["lost"]}
    assert "resuming from step" in (root.attempt("small", "pruned", 2) / "log.txt").read_text()
    assert found.figures == run_locally(plan, tmp_path / "local").figures
