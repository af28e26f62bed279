"""What an earlier coordinator left: one bad attempt, row or clock does not keep the others from being closed."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunegpt.points import Point
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.sweep import recovery
from prunegpt.sweep.lock import lives
from prunegpt.sweep.recovery import OUTSIDE, is_outside, mark_outside, recover
from prunegpt.sweep.repair import examine, repair
from tests.support.sweep_plans import make_plan, make_trial

POINT = {"stage": 1, "step": 5, "epoch": 1.0, "name": "loss", "value": 2.0, "time": 1.0}


def points(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "points.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def unreadable(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


BAD: dict[str, Callable[[Path], object]] = {
    "a step that no database holds": lambda folder: points(folder, {**POINT, "step": 2**63}, POINT),
    "tokens that no database holds": lambda folder: points(folder, {**POINT, "tokens": -(2**64)}, POINT),
    "a stage that no database holds": lambda folder: points(folder, {**POINT, "stage": 2**40}, POINT),
    "points that are a folder": lambda folder: unreadable(folder / "points.jsonl"),
    "points that are no text": lambda folder: (folder / "points.jsonl").write_bytes(os.urandom(4000) + b"\n"),
    "a plan that is a folder": lambda folder: unreadable(folder / "trial.json"),
    "a plan that is none": lambda folder: (folder / "trial.json").write_text("{"),
    "a record that is a folder": lambda folder: unreadable(folder / "record.json"),
    "a record that is none": lambda folder: (folder / "record.json").write_text("[1, 2"),
    "a log that is a folder": lambda folder: unreadable(folder / "log.txt"),
    "no folder": lambda folder: [*map(Path.unlink, folder.iterdir()), folder.rmdir()],
    "a folder that is a file": lambda folder: [*map(Path.unlink, folder.iterdir()), folder.rmdir(), folder.touch()],
    "a stage that is a folder": lambda folder: unreadable_stage(folder),
}


def unreadable_stage(folder: Path) -> None:
    stage = Root(folder.parents[3]).stage("a")
    stage.mkdir(parents=True)
    (stage / "stage.json").mkdir()


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("what", BAD)
def test_one_bad_attempt_does_not_stop_a_sweep(bench: Any, what: str, repaired: bool) -> None:
    trials = make_trial("a", "load a"), make_trial("b", "load b"), make_trial("good", "load c")
    for saved in bench.store.save_sweep(make_plan(*trials)):
        folder = bench.root.path / bench.store.start_attempt(saved.id).folder
        folder.mkdir(parents=True)
        (folder / "trial.json").write_text(saved.plan.model_dump_json())
        points(folder, POINT)
        if saved.plan.name == "a":
            BAD[what](folder)
        if saved.plan.name == "good":
            AttemptRecord(sweep="words", trial="good", attempt=1, state="diverged", reason="diverged").write(
                folder / "record.json"
            )
    if repaired:
        assert examine(bench.root)
        assert repair(bench.root, lambda _: True)
    outcome = bench.run(*trials)
    assert {"words/b"} <= set(outcome.finished) <= {"words/a", "words/b"}
    assert outcome.finished == ("words/a", "words/b") or not repaired
    assert outcome.unchanged == ("words/good",)
    assert bench.store.running_attempts() == []
    assert [point.value for point in bench.store.points("words/good", "loss", stage=1)] == [2.0]


def test_a_failure_that_is_none_of_the_listed_ones_is_kept_to_its_attempt(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = make_trial("a", "load a"), make_trial("b", "load b")
    for saved in bench.store.save_sweep(make_plan(*trials)):
        bench.store.start_attempt(saved.id)

    def burst(root: Root, store: object, row: Any) -> Any:
        raise OverflowError(f"of {row.trial}")

    monkeypatch.setattr(recovery, "ending_of", burst)
    assert recover(bench.root, bench.store) == ["words/a", "words/b"]
    (attempt,) = bench.store.attempts("words/a")
    assert (attempt.reason, attempt.error) == ("lost", "what it left cannot be read: of a")
    assert bench.states() == {"a": "waiting", "b": "waiting"}


@pytest.mark.parametrize("field", ["stage", "step", "tokens"])
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400])
def test_no_point_has_a_number_that_no_database_holds(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        Point.model_validate({**POINT, field: value})


# -- what is dead, and what only seems so --------------------------------------------------------------------------


@pytest.fixture
def agents(bench: Any) -> Path:
    """The folder of an attempt that an agent of another machine runs."""
    (saved,) = bench.store.save_sweep(make_plan(make_trial("a", "load a")))
    folder: Path = bench.root.path / bench.store.start_attempt(saved.id).folder
    mark_outside(folder)
    (folder / OUTSIDE).write_text(json.dumps({"pid": 1, "host": "another"}))
    (folder / "trial.json").write_text(saved.plan.model_dump_json())
    return folder


def spoke(folder: Path, ago: float) -> None:
    now = Root(folder.parents[3]).now()
    os.utime(folder / OUTSIDE, (now - ago, now - ago))


@pytest.mark.parametrize("pid", ["1e400", "1" + "0" * 30, "-1" + "0" * 30, "null", "[]", '"x"'])
def test_no_process_has_a_number_that_no_system_holds(bench: Any, agents: Path, pid: str) -> None:
    (agents / OUTSIDE).write_text(f'{{"pid": {pid}, "host": {json.dumps(socket.gethostname())}}}')
    spoke(agents, 10.0)
    is_outside(agents)
    spoke(agents, 700.0)
    assert recover(bench.root, bench.store) == ["words/a"]


@pytest.mark.parametrize("pid", [10**30, -(10**30)])
def test_no_such_process_lives(pid: int) -> None:
    assert not lives(pid)


def test_a_clock_that_was_set_back_keeps_no_dead_agent_alive(agents: Path) -> None:
    spoke(agents, -86_400.0)
    assert is_outside(agents)
    assert abs((agents / OUTSIDE).stat().st_mtime - Root(agents.parents[3]).now()) < 60
    spoke(agents, 700.0)
    assert not is_outside(agents)


@pytest.mark.parametrize("wrong", [-86_400.0, -700.0, 700.0, 86_400.0])
def test_a_host_whose_clock_is_wrong_takes_no_living_agent_for_dead(
    bench: Any, agents: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + wrong)
    spoke(agents, 10.0)
    assert recover(bench.root, bench.store) == []
    spoke(agents, 700.0)
    assert recover(bench.root, bench.store) == ["words/a"]


@pytest.mark.parametrize("wrong", [-86_400.0, 86_400.0])
def test_stages_are_credited_to_whoever_computed_them_whatever_the_clocks_say(
    bench: Any, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    """The coordinator that died ran on a host whose clock was wrong; stages carry the time of the file system."""
    trial = make_trial("a", "load a")
    bench.run(make_trial("other", "load a", sweep="books"), name="books")
    bench.store.remove_sweep("books", ["load", "a"])
    (saved,) = bench.store.save_sweep(make_plan(trial))
    now = time.time
    with monkeypatch.context() as patched:
        patched.setattr("time.time", lambda: now() + wrong)
        folder = bench.root.path / bench.store.start_attempt(saved.id).folder
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(trial.model_dump_json())
    before = (bench.root.stage("load") / "stage.json").stat().st_mtime
    os.utime(folder / "trial.json", (before + 5, before + 5))
    os.utime(bench.root.stage("a") / "stage.json", (before + 9, before + 9))
    recover(bench.root, bench.store)
    assert {stage.key: stage.computations for stage in bench.store.stages()} == {"a": 1}


def test_an_attempt_that_comes_back_from_the_dead_undoes_nothing(bench: Any) -> None:
    """A worker that was stopped for longer than it may be silent; another attempt has gone on meanwhile."""
    trial = make_trial("a", "load a")
    (saved,) = bench.store.save_sweep(make_plan(trial))
    bench.store.start_attempt(saved.id)
    recover(bench.root, bench.store)
    late = AttemptRecord(sweep="words", trial="a", attempt=1, state="failed", reason="exception", error="too late")
    second = bench.store.start_attempt(saved.id)
    bench.store.finish_attempt(late)
    assert bench.states() == {"a": "running"}
    bench.store.finish_attempt(late.model_copy(update={"attempt": second.number, "state": "finished", "reason": ""}))
    bench.store.finish_attempt(late)
    assert bench.states() == {"a": "finished"}
