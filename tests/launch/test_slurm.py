"""Slurm: what the ends of its jobs mean, a scheduler that is away, orphans, and a real sweep that is disturbed."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from prunegpt.errors import LaunchError
from prunegpt.launch.base import Exited
from prunegpt.launch.job import Ended
from prunegpt.launch.refusal import passes
from prunegpt.launch.slurm import SlurmLauncher
from prunegpt.launch.slurm_left import end_left
from prunegpt.launch.slurm_queue import Queue, end_of, is_over, parse
from prunegpt.planning.resolve import plan_file
from prunegpt.root import Root
from prunegpt.spec.execution import SlurmOptions
from prunegpt.spec.plan import SweepPlan
from prunegpt.sweep.events import AttemptProgress, Event
from tests.launch.real_sweep import STEPS, run, run_locally, small_plan
from tests.launch.slurm_cluster import Cluster
from tests.support.waiting import Clock, until

CHECKOUT = Path(__file__).parents[2]
WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
OPTIONS = SlurmOptions(poll=0.3)
PATIENCE = 60.0


# -- what ends mean --------------------------------------------------------------------------------------------

HEARD = ("SIGTERM",)


@pytest.mark.parametrize(
    ("state", "ended", "asked", "exited"),
    [
        ("COMPLETED", Ended(0), False, Exited("ended", 0)),
        ("RUNNING", Ended(0), False, Exited("ended", 0)),  # its last lines are not written yet
        ("", Ended(0), False, Exited("ended", 0)),
        ("FAILED", Ended(7), False, Exited("failed", 7)),
        ("FAILED", Ended(None, 9), False, Exited("signal", None, 9)),
        ("PREEMPTED", Ended(1, None, HEARD), False, Exited("preempted", 1)),
        ("PREEMPTED", Ended(None, 9, HEARD), False, Exited("preempted", None, 9)),
        ("PREEMPTED", None, False, Exited("preempted")),
        ("FAILED", Ended(1, None, HEARD), False, Exited("preempted", 1)),  # within its grace time
        ("RUNNING", Ended(1, None, ("SIGUSR2",)), False, Exited("preempted", 1)),  # its time is nearly over
        ("TIMEOUT", Ended(1, None, ("SIGUSR2",)), False, Exited("preempted", 1)),
        ("TIMEOUT", None, False, Exited("time-limit")),
        ("DEADLINE", None, False, Exited("time-limit")),
        ("OUT_OF_MEMORY", None, False, Exited("out-of-memory")),
        ("OUT_OF_MEMORY", Ended(None, 9), False, Exited("out-of-memory", None, 9)),
        ("NODE_FAIL", None, False, Exited("lost")),
        ("BOOT_FAIL", None, False, Exited("lost")),
        ("COMPLETED", None, False, Exited("lost")),
        ("FAILED", None, False, Exited("failed")),
        ("", None, False, Exited("lost")),
        ("CANCELLED", Ended(1, None, HEARD), False, Exited("failed", 1)),  # by somebody else: its record says stopped
        ("CANCELLED", None, False, Exited("signal", None, signal.SIGTERM)),
        ("CANCELLED", None, True, Exited("cancelled")),
        ("CANCELLED", Ended(1, None, HEARD), True, Exited("cancelled", 1)),
        ("", None, True, Exited("cancelled")),
        ("COMPLETED", Ended(0), True, Exited("cancelled", 0)),
    ],
)
def test_what_the_end_of_a_job_means(state: str, ended: Ended | None, asked: bool, exited: Exited) -> None:
    assert end_of(state, ended, asked=asked) == exited


def test_which_states_are_over() -> None:
    assert not any(map(is_over, ["PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED"]))
    assert all(map(is_over, ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", ""]))


def test_an_exit_file_that_is_cut_says_nothing(tmp_path: Path) -> None:
    assert Ended.read(tmp_path) is None
    (tmp_path / "exit.json").write_text('{"code": 0, "sig')
    assert Ended.read(tmp_path) is None
    (tmp_path / "exit.json").write_text('{"code": 0, "signal": null, "heard": ["SIGUSR1"]}')
    assert Ended.read(tmp_path) == Ended(0, None, ("SIGUSR1",))


# -- the queue -------------------------------------------------------------------------------------------------


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in squeue's place, and in `asked.txt` what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "squeue"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def say(words: str) -> None:
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked.txt"}\n{words}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return say


def test_lines_that_are_no_states_are_passed_over() -> None:
    assert parse("slurm: warning|x\n12|RUNNING\n 13|PENDING \n\n") == {"12": "RUNNING", "13": "PENDING"}


def test_all_jobs_are_asked_for_at_once_and_not_too_often(squeue: Callable[[str], None], tmp_path: Path) -> None:
    squeue("echo '1|RUNNING'; echo '2|PENDING'")
    clock = Clock()
    queue = Queue(30.0, clock)
    until(lambda: queue.look(["2", "1"]), "an answer")
    for _ in range(50):
        clock.now += 0.5
        queue.look(["2", "1"])
    assert (queue.state("1"), queue.state("2"), queue.state("3")) == ("RUNNING", "PENDING", "")
    asked = (tmp_path / "asked.txt").read_text().splitlines()
    assert asked == ["--noheader --states=all --jobs=1,2 --format=%i|%T"]
    queue.close()


def test_a_scheduler_that_is_away_changes_no_states_and_is_asked_more_rarely(
    squeue: Callable[[str], None], tmp_path: Path
) -> None:
    squeue("echo '1|RUNNING'")
    clock = Clock()
    queue = Queue(0.05, clock)
    until(lambda: queue.look(["1"]), "an answer")
    known = queue.known
    clock.now += 0.1
    squeue("echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    until(lambda: queue.look(["1"]) or queue.problem, "the problem")
    assert "Unable to contact" in queue.problem
    assert (queue.state("1"), queue.known) == ("RUNNING", known)
    count = len((tmp_path / "asked.txt").read_text().splitlines())
    for _ in range(9):  # the next question comes after a second
        clock.now += 0.1
        queue.look(["1"])
    assert len((tmp_path / "asked.txt").read_text().splitlines()) == count
    squeue("echo '1|COMPLETED'")
    clock.now += 0.2
    until(lambda: queue.look(["1"]), "its return")
    assert (queue.state("1"), queue.problem) == ("COMPLETED", "")
    queue.close()


@pytest.mark.realtime
def test_a_question_without_an_answer_does_not_hold_us_up(squeue: Callable[[str], None]) -> None:
    squeue("sleep 600")
    queue = Queue(0.05)
    started = time.monotonic()
    for _ in range(20):
        assert not queue.look(["1"])
    queue.close()
    assert time.monotonic() - started < 5


def test_jobs_that_slurm_has_forgotten_are_unknown(squeue: Callable[[str], None]) -> None:
    squeue("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    queue = Queue(0.05)
    until(lambda: queue.look(["1"]), "an answer")
    assert (queue.state("1"), queue.problem) == ("", "")
    queue.close()


# -- submitting, to an sbatch that is a script here ------------------------------------------------------------


@pytest.fixture
def sbatch(squeue: Callable[[str], None], tmp_path: Path) -> Callable[[str], None]:
    """Puts programs in the place of Slurm's: sbatch does what it is told, and the others nothing."""
    pytest.importorskip("submitit", reason="submitit is not installed")

    def say(words: str) -> None:
        for name in ("srun", "scancel", "sbatch"):
            program = tmp_path / "bin" / name
            program.write_text(f"#!/bin/sh\n{words if name == 'sbatch' else ''}\n")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    squeue("")
    return say


def test_a_job_is_submitted_as_the_options_say(sbatch: Callable[[str], None], tmp_path: Path) -> None:
    sbatch("echo Submitted batch job 42")
    root = Root(tmp_path / "runs")
    options = SlurmOptions(partition="gpu", cpus=3, time=5400, extra={"nice": 7})
    launcher = SlurmLauncher(root, 1, options=options, gpus=2, command=WORKER)
    folder = attempt(root.path, "pass")
    handle = launcher.submit(folder)
    script = folder / "slurm" / "42_submission.sh"
    asked = set(script.read_text().splitlines())
    assert asked >= {
        "#SBATCH --partition=gpu",
        "#SBATCH --cpus-per-task=3",
        "#SBATCH --time=90",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --nice=7",
        "#SBATCH --no-requeue",
        f"#SBATCH --job-name={handle}",
    }
    (note,) = (root.path / "launch" / "slurm").glob("*.json")
    assert json.loads(note.read_text()) == {"name": handle, "job": "42", "folder": str(folder)}
    (folder / "exit.json").write_text('{"code": 0, "signal": null, "heard": []}')
    until(lambda: launcher.poll(handle), "the end")
    assert launcher.poll(handle) == Exited("ended", 0)
    assert not note.exists()
    launcher.close()


def test_without_a_time_the_cluster_sets_the_limit(sbatch: Callable[[str], None], tmp_path: Path) -> None:
    sbatch("echo Submitted batch job 42")
    root = Root(tmp_path / "runs")
    launcher = SlurmLauncher(root, 1, options=OPTIONS, command=WORKER)
    folder = attempt(root.path, "pass")
    launcher.submit(folder)
    script = folder / "slurm" / "42_submission.sh"
    assert "--time" not in script.read_text()


@pytest.mark.parametrize("known", ["17", ""], ids=["taken", "not taken"])
def test_a_submission_that_was_not_answered_is_made_once(
    known: str, sbatch: Callable[[str], None], squeue: Callable[[str], None], tmp_path: Path
) -> None:
    sbatch("echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    root = Root(tmp_path / "runs")
    launcher = SlurmLauncher(root, 1, options=OPTIONS, command=WORKER)
    folder = attempt(root.path, "pass")
    with pytest.raises(LaunchError, match=r"did not answer .*Unable to contact slurm controller") as raised:
        launcher.submit(folder)
    assert passes(raised.value)
    sbatch("echo Submitted batch job 42")
    squeue(f"echo {known}")
    launcher.submit(folder)
    (note,) = (root.path / "launch" / "slurm").glob("*.json")
    assert json.loads(note.read_text())["job"] == (known or "42")


def test_a_job_that_slurm_refuses_leaves_no_note(sbatch: Callable[[str], None], tmp_path: Path) -> None:
    sbatch("echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    root = Root(tmp_path / "runs")
    launcher = SlurmLauncher(root, 1, options=OPTIONS, command=WORKER)
    with pytest.raises(LaunchError, match=r"refused the job of .*: sbatch: error: invalid partition specified: gpu"):
        launcher.submit(attempt(root.path, "pass"))
    assert list((root.path / "launch" / "slurm").glob("*.json")) == []


# -- a real Slurm ----------------------------------------------------------------------------------------------


@pytest.fixture
def launcher(slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmLauncher:
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    return SlurmLauncher(Root(tmp_path / "runs"), 2, options=OPTIONS, command=WORKER, settle=1.0)


def attempt(root: Path, do: str) -> Path:
    folder = root / "trials" / "sweep" / f"trial-{time.monotonic_ns()}" / "attempt-1"
    folder.mkdir(parents=True)
    (folder / "do.txt").write_text(do)
    return folder


def wait(launcher: SlurmLauncher, handle: str) -> Exited:
    until(lambda: launcher.poll(handle), "the end")
    exited = launcher.poll(handle)
    assert exited is not None
    return exited


@pytest.mark.slow
def test_options_reach_slurm(slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    options = SlurmOptions(
        poll=0.3,
        partition="urgent",
        time=600,
        cpus=2,
        mem="100M",
        setup=("export SET_UP=yes",),
        extra={"comment": "x y"},
    )
    launcher = SlurmLauncher(Root(tmp_path), 1, options=options, command=WORKER, settle=1.0)
    show = "os.system('scontrol show job $SLURM_JOB_ID'); print(os.environ['SET_UP'], os.environ['OMP_NUM_THREADS'])"
    folder = attempt(tmp_path, show)
    assert wait(launcher, launcher.submit(folder)).reason == "ended"
    log = (folder / "log.txt").read_text()
    launcher.close()
    for words in ("Partition=urgent", "TimeLimit=00:10:00", "NumCPUs=2", "Requeue=0", "Comment=x y", "\nyes 2\n"):
        assert words in log


@pytest.mark.slow
def test_what_slurm_refuses_is_told(slurm_cluster: Cluster, tmp_path: Path) -> None:
    launcher = SlurmLauncher(Root(tmp_path), 1, options=SlurmOptions(partition="nowhere"), command=WORKER)
    with pytest.raises(LaunchError, match=r"refused the job of .*: .*[Ii]nvalid partition"):
        launcher.submit(attempt(tmp_path, "pass"))
    assert list((tmp_path / "launch" / "slurm").glob("*.json")) == []
    launcher.close()


@pytest.mark.slow
def test_a_scheduler_that_is_away_loses_nothing(
    launcher: SlurmLauncher, slurm_cluster: Cluster, tmp_path: Path
) -> None:
    running = attempt(tmp_path, "(folder / 'here').touch()\nwhile not (folder / 'go').exists(): time.sleep(0.1)")
    first = launcher.submit(running)
    until((running / "here").exists)
    slurm_cluster.stop("slurmctld")
    try:
        other = attempt(tmp_path, "pass")
        with pytest.raises(LaunchError) as away:
            launcher.submit(other)
        assert passes(away.value)
        assert launcher.poll(first) is None
    finally:
        slurm_cluster.start_controller()
    until(lambda: "Unable to contact" not in slurm_cluster.call("squeue"), "its return")
    assert wait(launcher, launcher.submit(other)).reason == "ended"
    (running / "go").touch()
    assert wait(launcher, first).reason == "ended"
    launcher.close()


@pytest.mark.slow
def test_a_job_that_vanishes_is_lost(launcher: SlurmLauncher, tmp_path: Path) -> None:
    folder = attempt(tmp_path, "(folder / 'pid').write_text(str(os.getppid()))\ntime.sleep(600)")
    handle = launcher.submit(folder)
    until(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)  # what watches over it on the node: no exit.json
    assert wait(launcher, handle) == Exited("failed")  # so says Slurm
    assert "Killed" in (folder / "log.txt").read_text()
    launcher.close()


@pytest.mark.slow
def test_a_waiting_job_is_cancelled(launcher: SlurmLauncher, slurm_cluster: Cluster, tmp_path: Path) -> None:
    held = SlurmLauncher(
        Root(tmp_path), 1, options=OPTIONS.model_copy(update={"extra": {"hold": True}}), command=WORKER, settle=1.0
    )
    handle = held.submit(attempt(tmp_path, "pass"))
    assert held.poll(handle) is None
    held.cancel(handle)
    assert wait(held, handle) == Exited("cancelled")
    held.close()
    launcher.close()


@pytest.mark.slow
def test_jobs_of_a_dead_coordinator_are_ended_before_the_next_goes_on(
    launcher: SlurmLauncher, slurm_cluster: Cluster, tmp_path: Path
) -> None:
    folder = attempt(tmp_path, "(folder / 'pid').write_text(str(os.getpid()))\ntime.sleep(600)")
    program = (
        "import os\nfrom pathlib import Path\n"
        "from prunegpt.launch.slurm import SlurmLauncher\nfrom prunegpt.root import Root\n"
        f"SlurmLauncher(Root(Path({str(tmp_path / 'runs')!r})), command={WORKER!r}).submit(Path({str(folder)!r}))\n"
        "os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    until(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), "the orphan")
    (note,) = (tmp_path / "runs" / "launch" / "slurm").glob("*.json")
    name = json.loads(note.read_text())["name"]
    assert name in slurm_cluster.call("squeue", "--noheader", "--format=%j")
    end_left(Root(tmp_path / "runs"))
    assert not note.exists()
    assert name not in slurm_cluster.call("squeue", "--noheader", "--format=%j")
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
    assert wait(launcher, launcher.submit(attempt(tmp_path, "pass"))).reason == "ended"
    assert "its coordinator ended before it did" in (folder / "log.txt").read_text()
    launcher.close()


@pytest.mark.slow
def test_a_sweep_that_is_preempted_and_cancelled_comes_to_the_same_result(
    slurm_cluster: Cluster,
    tmp_path: Path,
    model_folder: Path,
    text_files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once other work takes its place, once somebody cancels the job: both times it resumes from its checkpoint."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    plan = partial(small_plan, model=model_folder, files=text_files)
    root = Root(tmp_path / "slurm")
    disturbed: list[int] = []

    def disturb(event: Event) -> None:
        if not isinstance(event, AttemptProgress) or not 0 < event.step < STEPS or len(disturbed) == 2:
            return
        if disturbed and event.step <= disturbed[-1]:
            return
        (note,) = [path for path in (root.path / "launch" / "slurm").glob("*.json") if "pruned" in path.name]
        disturbed.append(event.step + 40)
        if len(disturbed) == 1:
            words = ["--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 2"]
            slurm_cluster.call("sbatch", *words)
        else:
            slurm_cluster.call("scancel", json.loads(note.read_text())["job"])

    launcher = SlurmLauncher(root, 2, options=SlurmOptions(poll=0.5), settle=2.0)
    found = run(plan(root), root, launcher, disturb)
    assert found.states == {"pruned": "finished", "zero-shot": "finished"}
    assert found.repeated == {"small/pruned": ["preempted", "stopped"]}
    logs = [(root.attempt("small", "pruned", number) / "log.txt").read_text() for number in (1, 2, 3)]
    assert "resuming from step" not in logs[0]
    assert "resuming from step" in logs[1]
    assert "resuming from step" in logs[2]
    assert found.figures == run_locally(plan, tmp_path / "local").figures


@pytest.mark.slow
def test_the_quickstart_comes_to_the_same_through_slurm(
    slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its trials, with teachers and a shared stage, trained for a few steps only."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # arithmetic depends on it
    few = ["base.data.max_train_blocks=192", "base.evaluate.max_windows=16"]

    def plan(root: Root) -> SweepPlan:
        return plan_file(CHECKOUT / "sweeps" / "quickstart.yaml", few, root=root)

    root = Root(tmp_path / "slurm")
    found = run(plan(root), root, SlurmLauncher(root, 2, options=SlurmOptions(poll=0.5)))
    assert set(found.states.values()) == {"finished"}
    assert len(found.states) == 11
    assert found == run_locally(plan, tmp_path / "local")
