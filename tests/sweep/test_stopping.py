"""Ctrl-C, one coordinator a root, and a coordinator that dies at any instant."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from prunegpt.errors import LaunchError
from prunegpt.points import Point
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.attempt import Attempt
from prunegpt.sweep.control import Action, request, take, wait_for_end
from prunegpt.sweep.events import StagePublished, Stopping, SweepStarted, TrialFailed, TrialStarted
from prunegpt.sweep.interrupt import Interrupt
from prunegpt.sweep.live import look
from prunegpt.sweep.lock import Holder, coordinating, coordinator
from tests.support.sweep_plans import make_plan, make_trial
from tests.sweep.coordinators import SCRIPT, line_with, start


def interrupting(interrupt: Interrupt, kind: type, times: int = 1) -> Callable[[Any], None]:
    def hear(event: Any) -> None:
        if isinstance(event, kind):
            for _ in range(times):
                interrupt.request()

    return hear


def test_one_request_lets_a_trial_stop_by_itself(bench: Any) -> None:
    interrupt = Interrupt()
    bench.listen = interrupting(interrupt, StagePublished)
    trials = make_trial("a", "load a", seconds=2.0, steps=200), make_trial("b", "load b")
    outcome = bench.run(*trials, interrupt=interrupt)
    assert outcome.interrupted
    assert outcome.waiting == ("words/a", "words/b")
    assert not outcome.failed
    assert bench.heard(Stopping) == [Stopping(("words/a",), kill=False)]
    assert [(event.state, event.retried) for event in bench.heard(TrialFailed)] == [("waiting", False)]
    assert bench.states() == {"a": "waiting", "b": "waiting"}
    (attempt,) = bench.store.attempts("words/a")
    assert (attempt.state, attempt.reason) == ("stopped", "stopped")
    bench.listen = lambda _: None
    assert bench.run(*trials).finished == ("words/a", "words/b")
    assert bench.noted("computed") == ["load", "a", "b"]


def test_a_second_request_kills(bench: Any) -> None:
    interrupt = Interrupt()
    bench.listen = interrupting(interrupt, StagePublished, times=2)
    outcome = bench.run(make_trial("a", "load a", seconds=60.0, steps=600, deaf=True), interrupt=interrupt)
    assert outcome.waiting == ("words/a",)
    assert [event.kill for event in bench.heard(Stopping)] == [False, True]
    (attempt,) = bench.store.attempts("words/a")
    assert (attempt.state, attempt.reason) == ("stopped", "stopped")
    assert bench.states() == {"a": "waiting"}


def test_a_deaf_trial_is_killed_when_its_grace_is_over(bench: Any) -> None:
    interrupt = Interrupt()
    bench.listen = interrupting(interrupt, TrialStarted)
    trial = make_trial("a", "load a", seconds=60.0, steps=600, deaf=True)
    outcome = bench.run(trial, interrupt=interrupt, grace=0.3)
    assert outcome.waiting == ("words/a",)
    assert [event.kill for event in bench.heard(Stopping)] == [False, True]


INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize(
    ("heard", "urgency"),
    [
        ([(TERM, 0.0)], 1),
        ([(HUP, 0.0)], 1),
        ([(TERM, 0.0), (TERM, 0.0)], 1),  # `timeout`: the process, and at once its group
        ([(INT, 0.0), (INT, 0.001)], 1),  # `timeout -s INT`
        ([(TERM, 0.0), (TERM, 30.0), (TERM, 90.0), (HUP, 91.0)], 1),
        ([(TERM, 0.0), (INT, 30.0)], 1),  # the first of a person's
        ([(INT, 0.0), (TERM, 30.0)], 1),
        ([(INT, 0.0), (INT, 0.5), (INT, 0.9)], 1),
        ([(INT, 0.0), (INT, 5.0)], 2),
        ([(TERM, 0.0), (INT, 30.0), (INT, 32.0)], 2),
        ([(INT, 0.0), (INT, 5.0), (TERM, 6.0), (INT, 60.0)], 2),
    ],
)
def test_only_a_second_ctrl_c_well_after_the_first_is_urgent(heard: list[tuple[int, float]], urgency: int) -> None:
    times = iter([when for _, when in heard])
    interrupt = Interrupt(lambda: next(times))
    for number, _ in heard:
        interrupt.hear(number)
    assert interrupt.count == urgency


def test_a_step_that_takes_longer_than_the_grace_is_waited_for(tmp_path: Path) -> None:
    now = [0.0]
    trial = make_trial("a", "load a")
    attempt = Attempt(1, 1, trial, tmp_path, clock=lambda: now[0])
    assert attempt.patience(120.0) == 120.0
    with Store.open(Root(tmp_path)) as store:
        (saved,) = store.save_sweep(make_plan(trial))
        attempt.id = store.start_attempt(saved.id).id
        attempt.store_points(store)
        now[0] = 100.0
        assert attempt.patience(120.0) == 120.0
        now[0] = 400.0
        assert attempt.patience(120.0) == 400.0  # it is in its first step still
        now[0] = 1e6
        assert attempt.patience(120.0) == 1800.0  # or hangs
        now[0] = 400.0
        for at in (400.0, 700.0, 730.0):
            now[0] = at
            point = Point(stage=0, step=int(at), epoch=0.0, name="loss", value=1.0, time=0.0)
            with (tmp_path / "points.jsonl").open("a") as file:
                file.write(point.model_dump_json() + "\n")
            attempt.store_points(store)
        assert attempt.patience(120.0) == 800.0
        assert attempt.patience(900.0) == 900.0


def test_a_request_before_the_start_runs_nothing(bench: Any) -> None:
    interrupt = Interrupt()
    interrupt.request()
    assert bench.run(make_trial("a"), interrupt=interrupt).waiting == ("words/a",)
    assert bench.heard(TrialStarted) == []


def test_a_trial_that_finishes_while_it_is_asked_to_stop_is_finished(bench: Any) -> None:
    interrupt = Interrupt()
    bench.listen = interrupting(interrupt, StagePublished)
    outcome = bench.run(make_trial("a", "load", deaf=True), make_trial("b", "load b"), interrupt=interrupt)
    assert outcome.finished == ("words/a",)
    assert outcome.waiting == ("words/b",)


@pytest.mark.parametrize("numbers", [[INT], [TERM], [HUP], [TERM, TERM], [HUP, TERM], [INT, INT]], ids=str)
def test_signals_stop_a_coordinator_in_good_order(bench: Any, numbers: list[int]) -> None:
    process = start(bench.root, make_plan(make_trial("a", "load a", seconds=30.0, steps=3000)))
    line_with(process, "StagePublished")
    for number in numbers:
        process.send_signal(number)
    line_with(process, "Stopping")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == {"failed": [], "waiting": ["words/a"], "interrupted": True}
    assert "kill=True" not in out
    assert bench.states() == {"a": "waiting"}
    assert bench.store.running_attempts() == []
    (attempt,) = bench.store.attempts("words/a")
    assert attempt.reason == "stopped"


def test_a_terminal_that_goes_takes_nothing_with_it(bench: Any) -> None:
    """All that `sweep run` prints after SIGHUP goes nowhere, and the trial has its checkpoint."""
    file = bench.root.path.with_name("plan.json")
    file.write_text(make_plan(make_trial("a", "load a", seconds=30.0, steps=3000, checkpoint=True)).model_dump_json())
    terminal, other = os.openpty()
    command = [sys.executable, str(SCRIPT), str(file), str(bench.root.path), "1"]
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    seen = b""
    while b"StagePublished" not in seen:
        seen += os.read(terminal, 65536)
    os.close(terminal)  # whatever is written from now on is an error
    process.send_signal(HUP)
    assert process.wait(60) == 0
    assert bench.states() == {"a": "waiting"}
    (attempt,) = bench.store.attempts("words/a")
    assert (attempt.state, attempt.reason) == ("stopped", "stopped")


def test_a_sighup_that_is_ignored_stays_so(bench: Any) -> None:
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with Interrupt().on_signals():
            assert signal.getsignal(HUP) == signal.SIG_IGN
            assert signal.getsignal(TERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(HUP, before)


def test_signal_handlers_are_given_back(bench: Any) -> None:
    before = [signal.getsignal(number) for number in (INT, TERM, HUP)]
    bench.run(make_trial("a"))
    assert [signal.getsignal(number) for number in (INT, TERM, HUP)] == before


def test_a_second_coordinator_is_refused_by_name(bench: Any) -> None:
    process = start(bench.root, make_plan(make_trial("a", "load a", seconds=30.0, steps=3000)))
    line_with(process, "TrialStarted")
    assert coordinator(bench.root).pid == process.pid
    words = rf"takes one coordinator at a time; .* has one already: process {process.pid} on \S+, since 2"
    with pytest.raises(LaunchError, match=words):
        bench.run(make_trial("b"))
    assert bench.states() == {"a": "running"}
    process.kill()
    process.communicate()
    with FileLock(bench.root.path / ".coordinator.lock", timeout=60):
        pass  # the worker was forked from the coordinator, and holds its lock until it hears that nobody is there
    assert coordinator(bench.root) is None
    outcome = bench.run(make_trial("b"))
    assert (*outcome.finished, *outcome.cached) == ("words/b",)  # the killed trial may have come through its load


NOTES = {
    "this process": lambda: {"pid": os.getpid(), "host": socket.gethostname()},  # a pid that lives again
    "another host": lambda: {"pid": 1, "host": "a-container-that-was-restarted"},
    "nonsense": lambda: {"pid": "?"},
}


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_was_left_behind_holds_nobody_up(bench: Any, note: str) -> None:
    left = {"since": 1.0, "sweep": "words", **NOTES[note]()}
    with coordinating(bench.root):
        pass
    (bench.root.path / ".coordinator.json").write_text(json.dumps(left))
    assert coordinator(bench.root) is None
    assert not look(bench.root, bench.store).coordinator
    with pytest.raises(LaunchError, match="nothing runs under"):
        request(bench.root, Action("stop", "words"))
    assert bench.run(make_trial("a")).ok
    assert not (bench.root.path / ".coordinator.json").exists()


def test_whoever_asks_who_coordinates_does_not_keep_others_from_it(bench: Any) -> None:
    asked = [0]

    def ask() -> None:
        while not over.is_set():
            coordinator(bench.root)
            asked[0] += 1

    over = threading.Event()
    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(30):
            with coordinating(bench.root):
                assert coordinator(bench.root).pid == os.getpid()
    finally:
        over.set()
        for asker in askers:
            asker.join()
    assert asked[0]


def test_a_coordinator_that_hears_nothing_is_named_with_the_way_out(bench: Any) -> None:
    now = iter(range(0, 1000, 20))
    with coordinating(bench.root, "words"):
        wish = request(bench.root, Action("stop", "words"))
        end = rf"`kill -9 {os.getpid()}`; `prunegpt sweep resume words`"
        words = rf"process {os.getpid()} on .* has not within 30 s: .*{end}"
        with pytest.raises(LaunchError, match=words):
            wait_for_end(bench.root, wish, clock=lambda: next(now), look=0.0)
        assert not wish.exists()
        wish = request(bench.root, Action("stop", "words"))
        assert take(bench.root) == [Action("stop", "words")]
    wait_for_end(bench.root, wish)


def test_who_stops_a_sweep_does_not_wait_for_the_next_one_in_the_queue(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, following = Holder(1, "here", 0.0, "words"), Holder(1, "here", 1.0, "other")
    holders = iter([stopped, stopped, following])
    monkeypatch.setattr("prunegpt.sweep.control.coordinator", lambda _: next(holders))
    wait_for_end(bench.root, bench.root.path / "taken.json", look=0.0)
    assert list(holders) == []


def test_who_coordinates_is_known_while_it_does(bench: Any) -> None:
    assert coordinator(bench.root) is None
    with coordinating(bench.root):
        assert coordinator(bench.root).pid == os.getpid()
    assert coordinator(bench.root) is None


def test_an_attempt_that_was_left_running_is_lost_and_runs_again(bench: Any) -> None:
    trial = make_trial("a", "load a", seconds=30.0, steps=3000)
    process = start(bench.root, make_plan(trial))
    line_with(process, "StagePublished")
    process.kill()
    process.communicate()
    assert bench.states() == {"a": "running"}
    outcome = bench.run(make_trial("a", "load a"))
    assert outcome.finished == ("words/a",)
    assert bench.heard(SweepStarted)[0].lost == ("words/a",)
    first, second = bench.store.attempts("words/a")
    assert (first.state, first.reason, second.state) == ("failed", "lost", "finished")
    assert bench.noted("computed") == ["load", "a"]
    assert bench.store.points("words/a", "loss", stage=0)


def test_an_attempt_that_finished_while_nobody_looked_counts_as_its_record_says(bench: Any) -> None:
    (saved,) = bench.store.save_sweep(make_plan(make_trial("a", "load a")))
    started = bench.store.start_attempt(saved.id)
    folder = bench.root.path / started.folder
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(saved.plan.model_dump_json())
    (folder / "points.jsonl").write_text('{"stage":1,"step":5,"epoch":1.0,"name":"loss","value":2.0,"time":1.0}\n{"st')
    AttemptRecord(
        sweep="words", trial="a", attempt=1, state="diverged", reason="diverged", error="the loss is nan"
    ).write(folder / "record.json")
    outcome = bench.run(make_trial("a", "load a"), make_trial("b", "load b"))
    assert outcome.unchanged == ("words/a",)
    assert bench.store.result("words/a").error == "the loss is nan"
    assert [point.value for point in bench.store.points("words/a", stage=1)] == [2.0]


def test_an_attempt_that_never_got_its_plan_is_lost(bench: Any) -> None:
    (saved,) = bench.store.save_sweep(make_plan(make_trial("a", "load a")))
    bench.store.start_attempt(saved.id)
    assert bench.run(make_trial("a", "load a")).finished == ("words/a",)
    assert [attempt.reason for attempt in bench.store.attempts("words/a")] == ["lost", ""]


def test_an_exception_in_a_listener_leaves_nothing_running(bench: Any) -> None:
    def fail(event: Any) -> None:
        if isinstance(event, StagePublished):
            raise RuntimeError("the screen is gone")

    bench.listen = fail
    with pytest.raises(RuntimeError, match="the screen is gone"):
        bench.run(make_trial("a", "load a", seconds=60.0, steps=600))
    bench.listen = lambda _: None
    assert bench.run(make_trial("a", "load a")).finished == ("words/a",)
    assert bench.noted("computed") == ["load", "a"]


CHAOS = [
    make_trial("student", "load kd", needs="p1", seconds=0.05, steps=5),
    make_trial("a", "load ft", seconds=0.05, steps=5),
    make_trial("b", "load ft p1", seconds=0.05, steps=5),
    make_trial("c", "load ft p2 d2", seconds=0.05, steps=5),
    make_trial("dies", "load ft p3", seconds=0.05, steps=5, kill="p3", once=True),
    make_trial("other", "load2 x", seconds=0.05, steps=5, evaluation_key="other"),
    make_trial("fails", "load2 bad", fail="bad"),
    make_trial("child", "load2 y", needs="bad"),
]


SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random_instants_every_trial_finishes_exactly_once(bench: Any, seed: int) -> None:
    draw = random.Random(seed)
    plan = make_plan(*CHAOS)
    kills = 0
    for _ in range(40):
        process = start(bench.root, plan, slots=1 + seed % 3)
        try:
            out, err = process.communicate(timeout=draw.uniform(0.3, 1.5) if kills < 6 else 120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, err
        if json.loads(out.splitlines()[-1])["failed"] == ["words/fails", "words/child"]:
            break
    else:
        pytest.fail("it does not come to an end")
    assert kills
    assert bench.states() == {
        **dict.fromkeys((trial.name for trial in CHAOS), "finished"),
        "fails": "failed",
        "child": "failed",
    }
    assert bench.store.running_attempts() == []
    for trial in CHAOS[:6]:
        result = bench.store.result(f"words/{trial.name}")
        assert [stage.key for stage in result.stages] == [stage.key for stage in trial.stages]
        assert all(stage.evaluation.key == trial.evaluation_key for stage in result.stages)
        ended = [attempt.state for attempt in bench.store.attempts(result.id)]
        assert ended.count("finished") == 1
    published = {stage.key for trial in CHAOS[:6] for stage in trial.stages}
    assert len(bench.noted("computed")) == len(set(bench.noted("computed")))
    assert set(bench.noted("computed")) <= published
    counts = {stage.key: stage.computations for stage in bench.store.stages()}
    assert counts == dict.fromkeys(published, 1)


def test_a_worker_killed_from_outside_is_tried_again(bench: Any) -> None:
    process = start(bench.root, make_plan(make_trial("a", "load a", seconds=1.0, steps=100)))
    line_with(process, "TrialStarted")
    line_with(process, "StagePublished")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert [attempt.reason for attempt in bench.store.attempts("words/a")] == ["signal", ""]
    assert bench.states() == {"a": "finished"}
    assert bench.noted("computed") == ["load", "a"]


def test_a_reader_is_never_in_the_way(bench: Any) -> None:
    process = start(bench.root, make_plan(*(make_trial(f"t{i}", f"load t{i}", steps=50) for i in range(8))))
    reads = 0
    while process.poll() is None:
        with Store.open(bench.root, create=True) as store:
            if store.sweeps():
                store.results("words")
                reads += 1
        time.sleep(0.01)
    assert process.returncode == 0, process.stderr.read()
    assert reads
    assert set(bench.states().values()) == {"finished"}
