"""What other processes may ask of a running sweep, and the commands that ask."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.errors import LaunchError, PruneGPTError
from prunegpt.store import Store
from prunegpt.sweep.control import Action, request, take
from prunegpt.sweep.events import StagePublished, TrialFailed, TrialFinished
from prunegpt.sweep.live import look
from prunegpt.sweep.lock import coordinating
from tests.support.sweep_plans import make_plan, make_trial
from tests.support.waiting import ends
from tests.sweep.coordinators import line_with, start

LONG = {"seconds": 60.0, "steps": 6000}


@pytest.fixture
def command(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command on the bench's root; gives what it printed, or the message of its error."""
    monkeypatch.setenv("PRUNEGPT_ROOT", str(bench.root.path))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str, fails: bool = False, answer: str | None = None) -> str:
        result = CliRunner().invoke(app, list(arguments), input=answer)
        assert (result.exit_code != 0) == fails, f"{result.output}\n{result.exception!r}"
        return str(result.exception) if isinstance(result.exception, PruneGPTError) else result.output

    return call


def wish(bench: Any, kind: str, trial: str | None, at: type) -> None:
    """Leaves a wish when something happens for the first time."""
    left = [True]

    def hear(event: Any) -> None:
        if isinstance(event, at) and left:
            left.clear()
            request(bench.root, Action(kind, "words", trial))

    bench.listen = hear


@pytest.mark.parametrize("kind", ["stop", "kill"])
def test_a_sweep_is_stopped_from_elsewhere(bench: Any, kind: str) -> None:
    wish(bench, kind, None, StagePublished)
    outcome = bench.run(make_trial("a", "load a", deaf=kind == "kill", **LONG), make_trial("b", "load b"))
    assert outcome.interrupted
    assert outcome.waiting == ("words/a", "words/b")


def test_one_trial_is_stopped_and_the_others_go_on(bench: Any) -> None:
    wish(bench, "stop-trial", "a", StagePublished)
    outcome = bench.run(make_trial("a", "load a", **LONG), make_trial("b", "load b"))
    assert outcome.finished == ("words/b",)
    result = bench.store.result("words/a")
    assert (result.state, result.reason, result.error) == ("stopped", "stopped", "it was asked to stop.")
    assert bench.run(make_trial("a", "load a"), make_trial("b", "load b")).unchanged == ("words/a", "words/b")


def test_a_waiting_trial_is_stopped_before_it_starts(bench: Any) -> None:
    wish(bench, "stop-trial", "b", StagePublished)
    outcome = bench.run(make_trial("a", "load a", seconds=1.5, steps=9), make_trial("b", "load b"))
    assert outcome.finished == ("words/a",)
    assert bench.states()["b"] == "stopped"
    assert bench.store.result("words/b").attempts == 0


def test_a_trial_is_retried_while_the_sweep_runs(bench: Any) -> None:
    wish(bench, "retry", "a", TrialFailed)
    trials = make_trial("a", "load a", fail="a", once=1), make_trial("b", "load b", seconds=2.0, steps=9)
    outcome = bench.run(*trials)
    assert bench.states() == {"a": "finished", "b": "finished"}
    assert outcome.ok
    assert {event.trial for event in bench.heard(TrialFinished)} == {"words/a", "words/b"}


def test_a_diverged_trial_is_retried_with_those_that_shared_its_stage(bench: Any) -> None:
    wish(bench, "retry", "a", TrialFailed)
    trials = make_trial("a", "load a", diverge="a", once=1), make_trial("b", "load b", seconds=2.0, steps=9)
    assert bench.run(*trials).ok


def test_wishes_for_nobody_are_refused(bench: Any) -> None:
    bench.run(make_trial("a"))
    with pytest.raises(LaunchError, match="`stop` needs a running sweep; nothing runs under"):
        request(bench.root, Action("stop", "words"))
    with coordinating(bench.root, "books"):
        with pytest.raises(LaunchError, match=r"the sweep that runs under .* is 'books', not 'words'"):
            request(bench.root, Action("kill", "words"))
        request(bench.root, Action("retry", "words", "a"))
        (bench.root.path / "control" / "1.json").write_text('{"kind": "dance", "sweep": "words"}')
        (bench.root.path / "control" / "2.json").write_text("no")
        assert take(bench.root) == [Action("retry", "words", "a")]
        assert take(bench.root) == []


def test_a_wish_that_nobody_heard_does_not_stop_the_next_run(bench: Any) -> None:
    with coordinating(bench.root, "words"):
        request(bench.root, Action("kill", "words"))
    assert bench.run(make_trial("a")).ok


def test_the_command_stops_and_says_when_it_has(bench: Any, command: Callable[..., str]) -> None:
    process = start(bench.root, make_plan(make_trial("a", "load a", **LONG)))
    line_with(process, "StagePublished")
    assert "not 'other'" in command("sweep", "stop", "other", fails=True)
    refusal = command("sweep", "rm", "words", "--yes", fails=True)
    assert f"has one already: process {process.pid}" in refusal
    assert "which runs words" in refusal
    pictures = (command("sweep", "watch", "words", "--once") for _ in range(50))
    picture = next(picture for picture in pictures if "2/2" in picture)  # the first point of the stage may be under way
    assert "1 running" in picture
    assert f"run by process {process.pid}" in picture
    assert "2/2 finetune" in picture
    assert "words: stopped" in command("sweep", "stop", "words")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["interrupted"]
    assert bench.states() == {"a": "waiting"}
    assert "nothing runs under" in command("sweep", "stop", "words", fails=True)


def test_the_command_stops_some_trials(bench: Any, command: Callable[..., str]) -> None:
    plan = make_plan(make_trial("a1", "load a", **LONG), make_trial("a2", "load b"), make_trial("c", "load c"))
    process = start(bench.root, plan)
    line_with(process, "StagePublished")
    assert "no trial of words that runs or waits matches 'b*'. There are: a1, a2, c" in command(
        "sweep", "stop", "words", "b*", fails=True
    )
    refusal = command("sweep", "stop", "words", "a*", "--kill", fails=True)
    assert "--kill stops a whole sweep, and goes without GLOB." in " ".join(refusal.split())
    command("sweep", "stop", "words", "a1", "a[2-9]")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert bench.states() == {"a1": "stopped", "a2": "stopped", "c": "finished"}


def test_retry_lets_trials_wait_again(bench: Any, command: Callable[..., str]) -> None:
    trials = [make_trial("a1", "load a", fail="a"), make_trial("a2", "load d", diverge="d"), make_trial("c", "load c")]
    bench.run(*trials)
    assert "that failed, diverged, was stopped or lacks its model matches 'c'. There are: a1, a2" in command(
        "sweep", "retry", "words", "c", fails=True
    )
    with coordinating(bench.root, "other"):  # takes the request, and does not run the trial
        assert "`prunegpt" not in (told := command("sweep", "retry", "words", "*1"))
        assert "prunegpt sweep resume words runs them." in told
    assert take(bench.root) == [Action("retry", "words", "a1")]
    assert json.loads(command("sweep", "retry", "words", "*1", "--json")) == {"trials": ["a1"], "running": False}
    assert bench.states() == {"a1": "waiting", "a2": "diverged", "c": "finished"}
    assert "words/a2" in command("sweep", "retry", "words")
    assert bench.states() == {"a1": "waiting", "a2": "waiting", "c": "finished"}
    mended = [make_trial("a1", "load a"), make_trial("a2", "load d"), make_trial("c", "load c")]
    assert bench.run(*mended).finished == ("words/a1", "words/a2")


def test_retry_asks_the_coordinator_that_runs(bench: Any, command: Callable[..., str]) -> None:
    trials = make_trial("a", "load a", fail="a", once=1), make_trial("b", "load b", **LONG)
    process = start(bench.root, make_plan(*trials))
    line_with(process, "TrialFailed")
    assert "picks them up" in command("sweep", "retry", "words")
    line_with(process, "Progress")
    command("sweep", "stop", "words", "b")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert bench.states() == {"a": "finished", "b": "stopped"}


def test_failures_are_told_with_the_end_of_their_logs(bench: Any, command: Callable[..., str]) -> None:
    bench.run(make_trial("a", "load a", exit="a"), make_trial("b", "load b", fail="b"), make_trial("c", "load c"))
    status = command("sweep", "status", "words")
    log = bench.root.path / "trials/words/a/attempt-2/log.txt"
    assert "words/a: failed (exit): its process ended with code 3" in status
    assert f"    going down\n  log: {log}" in status
    assert "words/b: failed (exception): cannot compute b" in status
    assert "1 finished" in status
    shown = command("trial", "show", "words/a")
    assert "tried again" in shown
    assert "The end of the log of attempt 2:\n    running a" in shown
    assert f"Log: {log}" in shown
    history = json.loads(command("trial", "show", "words/a", "--json"))["history"]
    assert [(one["number"], one["reason"], one["outcome"]) for one in history] == [
        (1, "exit", "retried"),
        (2, "exit", "failed"),
    ]
    assert history[1]["last_lines"].endswith("going down")
    assert (bench.root.path / history[1]["log"]).exists()


def test_a_list_says_which_perplexities_are_no_others_company(bench: Any, command: Callable[..., str]) -> None:
    bench.run(make_trial("a", "load a"), make_trial("b", "load b"), make_trial("odd", "load c", evaluation_key="other"))
    told = command("sweep", "status", "words")
    assert "note: evaluated differently from the other trials, so not comparable: odd\n" in told


def test_many_finished_trials_are_counted_instead_of_listed(bench: Any, command: Callable[..., str]) -> None:
    bench.run(*(make_trial(f"t{index}", "load a") for index in range(205)), make_trial("bad", "load b", fail="b"))
    status = command("sweep", "status", "words")
    assert "and 5 more finished trials; list them with --all" in status
    assert " t4 " not in status
    assert " t5 " in status
    assert " bad " in status
    assert " t4 " in command("sweep", "status", "words", "--all")
    assert len(json.loads(command("sweep", "status", "words", "--json"))["trials"]) == 206


def test_rm_takes_rows_and_logs_and_only_the_stages_that_nobody_else_uses(
    bench: Any, command: Callable[..., str]
) -> None:
    bench.run(make_trial("a", "load ft a"), make_trial("gone", "load old"), make_trial("teacher", "load teach"))
    bench.run(make_trial("a", "load ft a2"), make_trial("teacher", "load teach"))
    other = make_trial("x", "load ft x", sweep="books"), make_trial("kd", "load kd", sweep="books", needs="teach")
    bench.run(*other, name="books")
    assert "Aborted" in command("sweep", "rm", "words", "--stages", fails=True, answer="n\n")
    assert bench.store.sweep("words").trials == 2
    said = command("sweep", "rm", "words", "--stages", "--yes")
    assert "3 trials, 4 attempts" in said
    assert "3 stages" in said
    assert [sweep.name for sweep in bench.store.sweeps()] == ["books"]
    assert sorted(path.name for path in bench.root.stages.iterdir()) == ["ft", "kd", "load", "teach", "x"]
    assert not (bench.root.path / "trials" / "words").exists()
    assert {stage.key for stage in bench.store.stages()} == {"ft", "kd", "load", "teach", "x"}
    assert "unknown sweep 'words'" in command("sweep", "rm", "words", "--yes", fails=True)
    assert bench.run(*other, name="books").unchanged == ("books/x", "books/kd")
    command("sweep", "rm", "books", "--yes")
    assert bench.root.is_published("x")
    assert bench.run(*other, name="books").cached == ("books/x", "books/kd")


def test_a_frame_says_what_runs_how_far_and_what_ended(bench: Any) -> None:
    frames: list[Any] = []

    def hear(event: Any) -> None:
        bench.events.append(event)
        if bench.store.running_attempts():
            with Store.open(bench.root) as reader:
                frames.append(look(bench.root, reader, "words"))

    bench.listen = hear
    train = {"max_steps": 20, "per_device_train_batch_size": 2}
    bench.run(
        make_trial("bad", "load b", fail="b"),
        make_trial("a", "load a", seconds=2.0, steps=20, train=train, tokens=16),
    )
    slots = [slot for frame in frames for slot in frame.slots if slot.trial == "words/a" and slot.tokens]
    assert slots
    assert all((slot.stage, slot.stages, slot.kind, slot.tokens_total) == (1, 2, "finetune", 320) for slot in slots)
    assert [slot.tokens for slot in slots] == sorted(slot.tokens for slot in slots)
    assert slots[-1].loss is not None
    later = [slot for slot in slots if slot.eta is not None]
    assert later
    assert all(0 <= slot.eta < 5 for slot in later)
    assert frames[-1].ends[0].trial == "words/bad"
    assert (frames[-1].ends[0].reason, frames[-1].ends[0].error) == ("exception", "cannot compute b")
    assert frames[-1].coordinator.pid == os.getpid()
    end = look(bench.root, bench.store, None)
    assert (end.slots, end.coordinator, dict(end.states)) == ((), None, {"failed": 1, "finished": 1})


def test_a_picture_for_scripts(bench: Any, command: Callable[..., str]) -> None:
    bench.run(make_trial("a"))
    told = json.loads(command("sweep", "watch", "--json"))
    assert told["states"] == {"finished": 1}
    assert told["slots"] == []
    assert told["ends"][0]["trial"] == "words/a"
    assert "nothing runs" in command("sweep", "watch")  # it ends at once where nothing runs


def test_watching_ends_with_the_sweep(bench: Any, command: Callable[..., str]) -> None:
    process = start(bench.root, make_plan(make_trial("a", "load a", seconds=2.0, steps=20)))
    line_with(process, "TrialStarted")
    picture = command("sweep", "watch", "words")
    assert "1 finished" in picture
    process.communicate(timeout=60)


def test_resume_needs_a_spec(bench: Any, command: Callable[..., str]) -> None:
    bench.run(make_trial("teacher", "big teach", sweep="books"), make_trial("s", "load kd", needs="teach"))
    assert "books only has trials that taught those of others" in command("sweep", "resume", "books", fails=True)
    assert "unknown sweep 'wodrs'. Did you mean 'words'?" in command("sweep", "resume", "wodrs", fails=True)


def test_a_killed_coordinator_leaves_no_worker_and_no_claim(bench: Any, command: Callable[..., str]) -> None:
    process = start(bench.root, make_plan(make_trial("a", "load a", **LONG)))
    line_with(process, "StagePublished")
    worker = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    ends(worker)
    assert "nothing runs under" in command("sweep", "stop", "words", fails=True)
