"""The queue of a root: in which order sweeps run, whatever their processes do meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.api import Sweep
from prunegpt.errors import LaunchError, StoreError
from prunegpt.launch import choose
from prunegpt.registry import LAUNCHERS
from prunegpt.root import Root
from prunegpt.spec.execution import LauncherSpec
from prunegpt.sweep import queue
from prunegpt.sweep.control import Action, request, take
from prunegpt.sweep.events import Event, Queued
from prunegpt.sweep.interrupt import Interrupt
from prunegpt.sweep.live import look
from prunegpt.sweep.lock import coordinating, coordinator
from prunegpt.sweep.queue import Ticket, take_out, turn, waiting
from tests.support.small import Invoke
from tests.support.sweep_plans import make_trial
from tests.support.waiting import until

# -- every interleaving ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What ends a process without a word."""


class Process:
    """A process that queues, runs and ends; a thread of which one slice at a time is run, between two points where
    others may come in: before it locks the root, when it has, at each pause, and while it runs."""

    def __init__(self, root: Root, name: str, priority: int, processes: dict[str, "Process"]) -> None:
        self.root, self.name, self.priority, self.processes = root, name, priority, processes
        self.arrived = self.ran = self.ended = self.killed = False
        self.came: bool | None = None
        self.interrupt = Interrupt()
        self.go, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        threading.Thread(target=self._main, daemon=True).start()

    @property
    def rank(self) -> tuple[int, int]:
        return -self.priority, list(self.processes).index(self.name)

    @property
    def queued(self) -> bool:
        return self.name in [waiter.sweep for waiter in waiting(self.root)]

    def slice(self) -> None:
        if not self.arrived:
            self.arrived = True
            self.processes[self.name] = self
        if not self.ended:
            self.go.release()
            self.back.acquire()

    def kill(self) -> None:
        """Its locks go and its files stay."""
        folder = self.root.path / "control" / "queue"
        left = {file: file.read_text() for file in folder.glob("*.json") if f'"{self.name}"' in file.read_text()}
        self.killed = True
        self.slice()
        for file, text in left.items():
            file.write_text(text)

    def _main(self) -> None:
        self.go.acquire()
        try:
            pause: Callable[[float], None] = lambda _: self._others()  # noqa: E731
            with turn(
                self.root, self.name, priority=self.priority, interrupt=self.interrupt, pause=pause, hold=self._hold
            ) as self.came:
                if self.came:
                    self.ran = True
                    self._others()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self.back.release()

    def _others(self) -> None:
        self.back.release()
        self.go.acquire()
        if self.killed:
            raise Killed

    @contextmanager
    def _hold(self, root: Root, sweep: str) -> Iterator[None]:
        first = min(one.rank for one in self.processes.values() if one.queued)
        assert first == self.rank, f"{self.name} goes before its turn"
        self._others()
        lock = FileLock(root.path / ".coordinator.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise LaunchError("taken") from error
        try:
            self._others()
            assert [one.name for one in self.processes.values() if one.came and not one.ended] == []
            yield
        finally:
            lock.release()


@given(
    st.lists(st.integers(-1, 1), min_size=3, max_size=3),
    st.lists(st.tuples(st.sampled_from(["slice", "slice", "slice", "leave", "out", "kill"]), st.integers(0, 2))),
)
@settings(max_examples=150, deadline=None)
def test_whoever_is_first_runs_next_and_nobody_is_forgotten(
    priorities: list[int], actions: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, arrived = Root(Path(folder)), {}
        all_of_them = [Process(root, f"p{i}", priority, arrived) for i, priority in enumerate(priorities)]
        gone, taken = set(), set()
        for action, index in actions:
            one = all_of_them[index]
            if action == "slice":
                one.slice()
            elif one.arrived and not one.ended and one.name not in gone:
                if one.came is None:
                    gone.add(one.name)
                if action == "leave":
                    one.interrupt.request()
                elif action == "out" and take_out(root, one.name):
                    taken.add(one.name)
                elif action == "out":
                    gone.discard(one.name)  # it runs
                elif action == "kill":
                    one.kill()
        for one in sorted(all_of_them, key=lambda one: one.arrived, reverse=True):
            one.slice()  # those that had not come arrive last
        for _ in range(30):
            for one in all_of_them:
                one.slice()
        assert all(one.ended and one.error is None for one in all_of_them), [one.error for one in all_of_them]
        assert waiting(root) == []
        Ticket(root, "last").give_back()
        assert list((root.path / "control" / "queue").iterdir()) == []  # what the killed left is tidied
        for one in all_of_them:
            assert one.ran or one.name in gone, f"{one.name} was forgotten"
            assert not (one.ran and one.name in taken), f"{one.name} was taken out, and runs"


# -- one at a time -----------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "runs")


def test_the_queue_is_told_at_first_and_when_it_changes(root: Root) -> None:
    told: list[Queued] = []
    pauses: list[float] = []
    early, late = Ticket(root, "early"), Ticket(root, "late", -1)

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            early.give_back()

    with turn(root, "mine", on_wait=told.append, pause=pause) as came:
        assert came
        assert [waiter.sweep for waiter in waiting(root)] == ["late"]
    assert pauses == [queue.POLL] * 3
    assert told == [Queued("mine", 2, 3, ("early",), "", "", 0, 0)]
    late.give_back()


def test_progress_of_the_sweep_that_runs_is_told(bench: Any) -> None:
    bench.run(make_trial("a"), make_trial("b"))
    told: list[Queued] = []
    interrupt = Interrupt()
    with coordinating(bench.root, "words"):
        with turn(
            bench.root, "mine", interrupt=interrupt, on_wait=told.append, pause=lambda _: interrupt.request()
        ) as came:
            assert not came
        ((place, runs, done, trials),) = [(one.place, one.runs, one.done, one.trials) for one in told]
    assert (place, runs, done, trials) == (1, "words", 2, 2)
    assert f"process {os.getpid()} on" in told[0].by
    assert waiting(bench.root) == []


def test_no_wait_is_refused_by_who_runs_or_waits(root: Root) -> None:
    refused = turn(root, "mine", wait=False)
    with (
        coordinating(root, "words"),
        pytest.raises(LaunchError, match=r"has one already: process .* runs words"),
        refused,
    ):
        pass
    other = Ticket(root, "other")
    words = rf"other waits for .* in process {os.getpid()} on .* Run without --no-wait"
    with pytest.raises(LaunchError, match=words), turn(root, "mine", wait=False):
        pass
    assert [waiter.sweep for waiter in waiting(root)] == ["other"]
    other.give_back()
    with turn(root, "mine", wait=False) as came:
        assert came


def test_a_copy_of_a_root_and_what_is_no_entry_hold_nobody_up(root: Root, tmp_path: Path) -> None:
    ticket = Ticket(root, "words")
    copy = Root(tmp_path / "copy")
    shutil.copytree(root.path, copy.path)
    (copy.path / "control" / "queue" / "x.json").write_text("no")
    (copy.path / "control" / "queue" / "y.json").write_text('{"pid": 1}')
    assert waiting(copy) == []
    with turn(copy, "mine", wait=False) as came:
        assert came
    assert [waiter.sweep for waiter in waiting(root)] == ["words"]
    assert take(root) == []  # no request of another process
    ticket.give_back()


def test_a_root_that_cannot_hold_a_queue_takes_one_at_a_time(root: Root) -> None:
    root.path.joinpath("control").mkdir(parents=True)
    root.path.joinpath("control", "queue").write_text("in the way")
    with turn(root, "mine") as came:
        assert came
        with pytest.raises(LaunchError, match="which runs mine"), turn(root, "other"):
            pass


def test_stop_takes_a_sweep_out_of_the_queue_and_stops_it_where_it_runs(root: Root) -> None:
    first, second = Ticket(root, "words"), Ticket(root, "words")
    assert request(root, Action("stop", "words")) is None
    assert (first.valid, second.valid, first.give_back(), second.give_back()) == (False,) * 4
    with coordinating(root, "words"):
        again = Ticket(root, "words")
        assert request(root, Action("stop", "words")) is not None
        assert not again.give_back()
        assert take(root) == [Action("stop", "words")]


def test_who_waits_is_shown(bench: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from prunegpt.cli import app

    def command(*arguments: str) -> str:
        with suppress(SystemExit):
            app([*arguments, "--root", str(bench.root.path)], standalone_mode=False)
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "200")
    bench.run(make_trial("a"))
    tickets = [Ticket(bench.root, "late"), Ticket(bench.root, "words", 7)]
    with coordinating(bench.root, "books"):
        for shown in (
            command("sweep", "status"),
            command("sweep", "status", "late"),
            command("sweep", "watch", "--once"),
        ):
            assert f"books is run by process {os.getpid()}" in shown
            assert f"waits, place 1: words (priority 7, process {os.getpid()} on " in shown
            assert "waits, place 2: late (priority 0," in shown
        answer = json.loads(command("sweep", "status", "--json"))
        assert answer["coordinator"]["sweep"] == "books"
        assert [(one["sweep"], one["priority"]) for one in answer["queue"]] == [("words", 7), ("late", 0)]
        assert [waiter.sweep for waiter in look(bench.root, bench.store, "late").queue] == ["words", "late"]
        with pytest.raises(StoreError, match="unknown sweep 'nobody'"):
            look(bench.root, bench.store, "nobody")
    for ticket in tickets:
        ticket.give_back()
    assert json.loads(command("sweep", "status", "--json"))["queue"] == []


@pytest.fixture
def measured(model_folder: Path, text_files: dict[str, str]) -> dict[str, Any]:
    """A spec that only measures a model."""
    base = {"model": str(model_folder), "data": {"files": text_files, "block_size": 32}}
    return {"base": base, "trials": [{"name": "dense"}]}


def test_from_python_a_second_sweep_waits_or_is_refused(
    root: Root, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "POLL", 0.01)
    sweep = Sweep({"name": "mine", **measured}, root=root.path)
    with coordinating(root, "words"):
        with pytest.raises(LaunchError, match="which runs words"):
            sweep.run(wait=False)
        outcome = sweep.run(priority=3, on_event=lambda event: take_out(root, event.sweep) and None)
    assert (outcome.interrupted, outcome.left_queue, outcome.waiting) == (True, True, ("mine/dense",))
    assert not outcome.ok


class Reached(LaunchError):
    """What runs trials was asked for."""


@pytest.mark.parametrize("kind", LAUNCHERS.builtin_names())
def test_whatever_runs_its_trials_a_sweep_opens_it_when_its_turn_has_come(
    root: Root, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """While it waits it holds no job, no cluster and no GPU."""
    opened: list[tuple[str, str]] = []

    def open_launcher(spec: LauncherSpec, of: Root, *, slots: int | None = None) -> None:
        holder = coordinator(of)
        opened.append((spec.kind, holder.sweep if holder else ""))
        raise Reached

    monkeypatch.setattr(choose, "open_launcher", open_launcher)
    monkeypatch.setattr(choose, "check_launcher", lambda *_, **__: None)  # which needs Slurm to be here
    monkeypatch.setattr(queue, "POLL", 0.01)
    first = ExitStack()
    first.enter_context(coordinating(root, "words"))
    before: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Queued) and event.runs:
            before.append(event.runs)
            assert opened == []
            first.close()

    with pytest.raises(Reached):
        Sweep({"name": "mine", **measured}, root=root.path).run(launcher=kind, on_event=hear)
    assert before == ["words"]
    assert opened == [(kind, "mine")]
    assert coordinator(root) is None


def test_a_launcher_that_is_not_here_is_told_before_the_queue(
    root: Root, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    heard: list[Event] = []
    with coordinating(root, "words"), pytest.raises(LaunchError, match="slurm cannot submit jobs here"):
        Sweep({"name": "mine", **measured}, root=root.path).run(launcher="slurm", on_event=heard.append)
    assert heard == []


def test_the_command_line_of_the_study_waits_too(
    root: Root, tmp_path: Path, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    def run_sweep(*given: Any, **more: Any) -> None:
        holder = coordinator(root)
        raise Reached(f"{holder and holder.sweep} runs")

    monkeypatch.setattr("prunegpt.sweep.coordinator.run_sweep", run_sweep)
    monkeypatch.setattr(queue, "POLL", 0.01)
    files = measured["base"]["data"]["files"]
    command = ["train", "--model_name_or_path", measured["base"]["model"], "--do_eval", "--block_size", "32"]
    command += ["--output_dir", str(tmp_path / "mine"), "--root", str(root.path)]
    command += ["--train_file", files["train"], "--validation_file", files["validation"]]
    first = ExitStack()
    first.enter_context(coordinating(root, "words"))

    def end_the_first() -> None:
        until(lambda: [waiter.sweep for waiter in waiting(root)] == ["mine"], "the queue")
        first.close()

    ending = threading.Thread(target=end_the_first)
    ending.start()
    assert invoke(*command, fails=True) == "mine runs"
    ending.join()
    assert waiting(root) == []


@pytest.mark.slow
def test_sweeps_of_several_processes_run_after_each_other(root: Root, tmp_path: Path, measured: dict[str, Any]) -> None:
    """One holds the root, one is killed while it waits, one is interrupted, two run the same sweep: once."""

    def start(name: str, *more: str) -> "subprocess.Popen[str]":
        spec = tmp_path / f"{name}.json"
        spec.write_text(json.dumps({"name": name, **measured}))
        command = [sys.executable, "-m", "prunegpt", "sweep", "run", str(spec), "--root", str(root.path), *more]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def wait_for(*sweeps: str) -> None:
        until(lambda: [waiter.sweep for waiter in waiting(root)] == [*sweeps], f"queue {sweeps}")

    with coordinating(root, "words"):
        same = start("same")
        wait_for("same")
        killed = start("killed", "--priority", "2")
        wait_for("killed", "same")
        again = start("same", "--priority", "-1")
        wait_for("killed", "same", "same")
        stopped = start("stopped", "--priority", "1")
        wait_for("killed", "stopped", "same", "same")
        killed.kill()
        wait_for("stopped", "same", "same")
        stopped.send_signal(signal.SIGINT)
        wait_for("same", "same")
    said = {one: one.communicate()[1] for one in (same, again, killed, stopped)}
    assert [one.returncode for one in (same, again, killed, stopped)] == [0, 0, -signal.SIGKILL, 1]
    assert "stopped left the queue before its turn" in said[stopped]
    assert "same: 1 trial to run, 0 finished before" in said[same]
    assert "same: 0 trials to run, 1 finished before" in said[again]
    assert "place 1 of 1 in the queue; words runs (process" in said[same]
