"""The coordinator on fake workers: order, sharing, the cache, failures and what is tried again."""

import json
import shutil
import time
from typing import Any

import pytest

from prunegpt.errors import SpecError
from prunegpt.launch.local import LocalLauncher
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.events import (
    AttemptProgress,
    CacheHit,
    StagePublished,
    SweepStarted,
    TrialFailed,
    TrialFinished,
    TrialStarted,
)
from tests.support import fake_worker
from tests.support.fork_launcher import ForkLauncher
from tests.support.sweep_plans import make_plan, make_trial


def finished(bench: Any) -> list[str]:
    return [event.trial.partition("/")[2] for event in bench.heard(TrialFinished)]


def test_one_slot_runs_in_spec_order(bench: Any) -> None:
    outcome = bench.run(make_trial("c", "load c"), make_trial("a", "load a"), make_trial("b", "load b"))
    assert finished(bench) == ["c", "a", "b"]
    assert outcome.finished == ("words/c", "words/a", "words/b")
    assert outcome.ok


def test_the_order_is_the_specs_whatever_the_plans(bench: Any) -> None:
    plan = make_plan(make_trial("first", "load a"), make_trial("second", "load b"))
    launcher = ForkLauncher(fake_worker.run)
    backwards = plan.model_copy(update={"trials": plan.trials[::-1]})
    run_sweep(backwards, bench.root, bench.store, launcher, on_event=bench.events.append)
    assert finished(bench) == ["first", "second"]
    assert [result.id for result in bench.store.results("words")] == [1, 2]


def test_shared_stages_are_computed_once(bench: Any) -> None:
    bench.run(*(make_trial(f"t{index}", f"load ft p{index}", seconds=0.1) for index in range(4)), slots=3)
    assert sorted(bench.noted("computed")) == ["ft", "load", "p0", "p1", "p2", "p3"]
    assert len(bench.noted("measured")) == len(set(bench.noted("measured"))) == 6
    counts = {stage.key: (stage.computations, stage.uses) for stage in bench.store.stages()}
    assert counts["ft"] == counts["load"] == (1, 3)
    assert counts["p0"] == (1, 0)


def test_a_waiting_trial_starts_when_the_stage_is_published_not_when_its_trial_ends(bench: Any) -> None:
    bench.run(make_trial("long", "load ft slow1 slow2 slow3", seconds=0.7), make_trial("short", "load ft p"), slots=2)
    assert finished(bench) == ["short", "long"]
    assert bench.noted("computed").count("ft") == 1


def test_trials_that_share_nothing_run_side_by_side(bench: Any) -> None:
    bench.run(make_trial("a", "loada a", seconds=0.6), make_trial("b", "loadb b", seconds=0.6), slots=2)
    kinds = [type(event) for event in bench.events if isinstance(event, (TrialStarted, TrialFinished))]
    assert kinds == [TrialStarted, TrialStarted, TrialFinished, TrialFinished]


def test_a_student_waits_for_its_teacher(bench: Any) -> None:
    bench.run(make_trial("student", "load kd", needs="teach"), make_trial("teacher", "big teach"), slots=2)
    assert bench.states() == {"student": "finished", "teacher": "finished"}
    assert bench.noted("computed").index("teach") < bench.noted("computed").index("kd")


def test_a_published_teacher_needs_no_trial(bench: Any) -> None:
    bench.run(make_trial("teacher", "big teach"))
    bench.run(make_trial("student", "load kd", needs="teach"), name="other", only=None)
    assert bench.heard(TrialFinished)[0].trial == "words/student"


def test_a_failed_teacher_fails_its_students_by_name(bench: Any) -> None:
    outcome = bench.run(
        make_trial("grandchild", "load g", needs="kd"),
        make_trial("student", "load kd", needs="teach"),
        make_trial("teacher", "big teach", fail="teach"),
        make_trial("unrelated", "load x"),
    )
    assert bench.states() == {"grandchild": "failed", "student": "failed", "teacher": "failed", "unrelated": "finished"}
    assert set(outcome.failed) == {"words/grandchild", "words/student", "words/teacher"}
    student = bench.store.result("words/student")
    assert student.reason == "dependency"
    assert "needs the model of words/teacher as its teacher, but that trial is failed" in student.error
    assert "cannot compute teach" in student.error
    assert "needs the model of words/student" in bench.store.result("words/grandchild").error
    assert student.attempts == 0


def test_a_teacher_that_nobody_computes_is_told(bench: Any) -> None:
    bench.run(make_trial("student", "load kd", needs="elsewhere"))
    assert "no trial of this sweep computes it" in bench.store.result("words/student").error


def test_teachers_in_a_circle_fail_instead_of_waiting_for_ever(bench: Any) -> None:
    bench.run(make_trial("a", "load a", needs="b"), make_trial("b", "load b", needs="a"))
    assert bench.states() == {"a": "failed", "b": "failed"}
    assert "only trials which wait for it in turn could still publish" in bench.store.result("words/a").error


def test_a_circle_that_a_failure_has_closed_fails_too(bench: Any) -> None:
    teacher, other = make_trial("teacher", "big teach", fail="teach"), make_trial("other", "big teach x", needs="kd")
    bench.run(teacher, make_trial("student", "load kd", needs="teach"), other)
    assert bench.states() == {"teacher": "failed", "student": "failed", "other": "failed"}


def test_a_failure_is_not_tried_again_in_this_run_but_in_the_next(bench: Any) -> None:
    outcome = bench.run(make_trial("a", "load a", fail="a"), make_trial("b", "load b"))
    assert outcome.failed == ("words/a",)
    assert outcome.finished == ("words/b",)
    result = bench.store.result("words/a")
    assert (result.state, result.reason, result.error, result.attempts) == (
        "failed",
        "exception",
        "cannot compute a",
        1,
    )
    assert [stage.key for stage in result.stages] == ["load"]
    outcome = bench.run(make_trial("a", "load a"), make_trial("b", "load b"))
    assert outcome.finished == ("words/a",)
    assert outcome.unchanged == ("words/b",)
    assert bench.store.result("words/a").attempts == 2
    assert bench.store.result("words/a").error == ""


def test_another_trial_takes_over_a_stage_that_one_has_failed_at(bench: Any) -> None:
    bench.run(make_trial("a", "load ft a", fail="ft"), make_trial("b", "load ft b"))
    assert bench.states() == {"a": "failed", "b": "finished"}


def test_a_stage_that_diverged_is_not_computed_again(bench: Any) -> None:
    chains = make_trial("a", "load ft a", diverge="ft"), make_trial("b", "load ft b"), make_trial("c", "load c")
    outcome = bench.run(*chains, make_trial("d", "load d", needs="ft"))
    assert bench.states() == {"a": "diverged", "b": "diverged", "c": "finished", "d": "failed"}
    assert "diverged in words/a" in bench.store.result("words/b").error
    assert bench.store.result("words/b").attempts == 0
    assert set(outcome.failed) == {"words/a", "words/b", "words/d"}
    again = bench.run(*chains, make_trial("d", "load d", needs="ft"))
    assert again.failed == ("words/d",)
    assert again.unchanged == ("words/a", "words/b", "words/c")
    assert "that trial is diverged" in bench.store.result("words/d").error


def test_a_killed_worker_is_tried_again_once(bench: Any) -> None:
    outcome = bench.run(make_trial("a", "load a b", kill="b", once=True), make_trial("c", "load c"))
    assert outcome.ok
    result = bench.store.result("words/a")
    assert (result.state, result.attempts, result.folder) == ("finished", 2, "trials/words/a/attempt-2")
    assert [stage.cached for stage in result.stages] == [True, True, False]
    assert bench.noted("computed").count("a") == 1
    first = bench.store.attempts("words/a")[0]
    assert (first.state, first.reason) == ("failed", "signal")
    assert "killed by signal 9 SIGKILL" in first.error
    failed = bench.heard(TrialFailed)
    assert [(event.retried, event.state) for event in failed] == [(True, "waiting")]
    assert (bench.root.path / failed[0].log).read_text().startswith("running a")


def test_a_worker_that_is_killed_twice_fails_the_trial(bench: Any) -> None:
    outcome = bench.run(make_trial("a", "load a", kill="a"), make_trial("b", "load b"))
    assert outcome.failed == ("words/a",)
    assert outcome.finished == ("words/b",)
    assert bench.store.result("words/a").attempts == 2
    assert bench.store.result("words/a").reason == "signal"


def test_a_worker_that_exits_leaves_its_log(bench: Any) -> None:
    bench.run(make_trial("a", "load a", exit="a"))
    attempt = bench.store.attempts("words/a")[-1]
    assert (attempt.state, attempt.reason) == ("failed", "exit")
    assert "ended with code 3 and left no record" in attempt.error
    assert "going down" in attempt.trace
    assert attempt.log.splitlines()[-1] == "going down"


def test_a_worker_without_a_record_is_lost_but_what_it_published_is_not(bench: Any) -> None:
    bench.run(make_trial("a", "load a", mute=True))
    assert [attempt.reason for attempt in bench.store.attempts("words/a")] == ["lost", "cache"]
    assert bench.states() == {"a": "finished"}
    assert {stage.key: stage.computations for stage in bench.store.stages()} == {"load": 1, "a": 1}


def test_a_worker_that_cannot_start_fails_the_trial_until_the_next_run(bench: Any) -> None:
    outcome = bench.run(make_trial("a"), launcher=LocalLauncher(bench.root, command=("/nowhere/python",)))
    assert outcome.failed == ("words/a",)
    (attempt,) = bench.store.attempts("words/a")
    assert (attempt.state, attempt.reason) == ("failed", "refused")
    assert "worker '/nowhere/python' did not start" in attempt.error
    assert bench.run(make_trial("a")).ok


def test_published_trials_finish_without_a_worker(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [make_trial("a", "load ft a"), make_trial("b", "load ft b", needs="a")]
    bench.run(*trials)
    before = {result.name: result.stages for result in bench.store.results("words")}
    bench.store.close()
    for file in bench.root.path.glob("prunegpt.db*"):
        file.unlink()
    monkeypatch.setattr(ForkLauncher, "submit", lambda *_: pytest.fail("a worker was started"))
    with Store.open(bench.root) as bench.store:
        outcome = bench.run(*trials)
        assert outcome.cached == ("words/a", "words/b")
        assert [(event.trial, event.stages) for event in bench.heard(CacheHit)] == [("words/a", 3), ("words/b", 3)]
        for result in bench.store.results("words"):
            assert (result.state, result.attempts, result.folder) == ("finished", 0, "")
            assert [stage.evaluation for stage in result.stages] == [one.evaluation for one in before[result.name]]
            assert all(stage.cached for stage in result.stages)


def test_attempts_are_numbered_after_the_folders_on_disk(bench: Any) -> None:
    bench.run(make_trial("a", "load a"))
    bench.store.close()
    for file in bench.root.path.glob("prunegpt.db*"):
        file.unlink()
    shutil.rmtree(bench.root.stage("a"))
    with Store.open(bench.root) as bench.store:
        bench.run(make_trial("a", "load a"))
        assert bench.store.result("words/a").folder == "trials/words/a/attempt-2"


def test_a_broken_published_stage_is_told_with_the_way_out(bench: Any) -> None:
    bench.run(make_trial("a", "load a"))
    (bench.root.stage("load") / "stage.json").write_text('{"key": 1}')
    bench.run(make_trial("a", "load a"), make_trial("b", "load"))
    error = bench.store.result("words/b").error
    assert "stage.json and evaluation.json that can be read" in error
    assert "Delete its folder" in error


def test_what_was_finished_under_other_keys_is_named(bench: Any) -> None:
    """As after a change of the spec, of a library, or of the format of stages."""
    bench.run(make_trial("a", "load a"), make_trial("b", "load b"), make_trial("c", "load c"))
    assert bench.heard(SweepStarted)[0].outdated == ()
    bench.run(make_trial("a", "load a"), make_trial("b", "load b2"), make_trial("c", "load d"), only="b")
    assert bench.heard(SweepStarted)[0].outdated == ("b", "c")
    assert bench.states() == {"a": "finished", "b": "finished", "c": "waiting"}
    bench.run(make_trial("a", "load a", evaluation_key="other"), make_trial("b", "load b3"), only="b")
    started = bench.heard(SweepStarted)[0]
    assert (started.outdated, started.remeasured) == (("b",), ("a",)), "what is measured otherwise keeps its model"


def test_a_changed_spec_runs_only_what_changed(bench: Any) -> None:
    bench.run(make_trial("a", "load a"), make_trial("b", "load b"), make_trial("c", "load c"))
    assert bench.heard(SweepStarted)[0].replaced == ""
    bench.run(make_trial("a", "load a"), make_trial("b", "load b2"), make_trial("d", "load c"))
    assert "not in the spec: 1 trial of the sweep (c)" in bench.heard(SweepStarted)[0].replaced
    assert [event.trial for event in bench.heard(TrialStarted)] == ["words/b"]
    assert [event.trial for event in bench.heard(CacheHit)] == ["words/d"]
    assert bench.noted("computed") == ["load", "a", "b", "c", "b2"]
    shown = {result.name: result.shown for result in bench.store.results("words", shown=None)}
    assert shown == {"a": True, "b": True, "c": False, "d": True}
    assert [stage.key for stage in bench.store.result("words/b").stages] == ["load", "b2"]


def test_a_changed_evaluation_only_measures_again(bench: Any) -> None:
    bench.run(make_trial("a", "load a"))
    bench.run(make_trial("a", "load a", evaluation_key="other"))
    assert bench.noted("computed") == ["load", "a"]
    assert bench.noted("measured") == ["load/measured", "a/measured", "load/other", "a/other"]
    result = bench.store.result("words/a")
    assert [stage.evaluation.key for stage in result.stages] == ["other", "other"]
    assert {stage.key: stage.computations for stage in bench.store.stages()} == {"load": 1, "a": 1}
    bench.run(make_trial("a", "load a"))
    assert [event.trial for event in bench.heard(CacheHit)] == ["words/a"]
    assert [stage.evaluation.key for stage in bench.store.result("words/a").stages] == ["measured", "measured"]


def test_trials_that_measure_nothing_finish_from_the_cache_too(bench: Any) -> None:
    bench.run(make_trial("a", "load a", skip=True))
    assert bench.noted("measured") == []
    bench.run(make_trial("a", "load a", skip=True), make_trial("b", "load a", skip=True))
    assert [event.trial for event in bench.heard(CacheHit)] == ["words/b"]
    assert bench.store.result("words/b").evaluation is None


def test_a_teacher_whose_stage_was_deleted_is_computed_again(bench: Any) -> None:
    teacher = make_trial("teacher", "big teach")
    bench.run(teacher)
    shutil.rmtree(bench.root.stage("teach"))
    assert bench.run(teacher, make_trial("student", "load kd", needs="teach")).ok
    assert bench.noted("computed").count("teach") == 2
    assert bench.noted("computed").count("big") == 1


def test_only_runs_the_matching_trials_and_their_teachers(bench: Any) -> None:
    trials = [
        make_trial("teacher", "big teach", needs="master"),
        make_trial("master", "huge master"),
        make_trial("student-1", "load kd1", needs="teach"),
        make_trial("student-2", "load kd2", needs="teach"),
        make_trial("other", "load other"),
    ]
    outcome = bench.run(*trials, only="student-1")
    assert outcome.finished == ("words/teacher", "words/master", "words/student-1")
    assert bench.states()["other"] == bench.states()["student-2"] == "waiting"
    outcome = bench.run(*trials, only=["student-*", "other"])
    assert outcome.finished == ("words/student-2", "words/other")
    assert outcome.unchanged == ("words/student-1",)


def test_only_that_matches_nothing_names_the_nearest(bench: Any) -> None:
    told = r"--only must match a trial or a search; 'studnet' matches none. There are: student"
    for only in ("studnet", ["other", "studnet"]):
        with pytest.raises(SpecError, match=told):
            bench.run(make_trial("other"), make_trial("student"), only=only)
    assert bench.store.sweeps() == []


def test_a_teacher_of_another_sweep_is_a_trial_of_that_one(bench: Any) -> None:
    teacher = make_trial("teacher", "big teach", sweep="books")
    student = make_trial("student", "load kd", needs="teach")
    assert bench.run(student, teacher).finished == ("words/student", "books/teacher")
    assert bench.store.result("books/teacher").folder == "trials/books/teacher/attempt-1"
    outcome = bench.run(teacher, make_trial("b", "load b", sweep="books"), name="books")
    assert outcome.unchanged == ("books/teacher",)
    assert outcome.finished == ("books/b",)


def test_a_teacher_of_another_sweep_does_not_replace_that_sweeps_own_trial(bench: Any) -> None:
    bench.run(make_trial("teacher", "big teach", sweep="books"), name="books")
    borrowed = make_trial("teacher", "big shorter", sweep="books")
    outcome = bench.run(make_trial("student", "load kd", needs="shorter"), borrowed)
    assert outcome.finished == ("words/student", "books/teacher+words")
    own = bench.store.result("books/teacher")
    assert (own.key, own.state, [stage.key for stage in own.stages]) == ("teach", "finished", ["big", "teach"])
    assert bench.store.result("books/teacher+words").implicit
    assert bench.run(make_trial("student", "load kd", needs="shorter"), borrowed).unchanged == (
        "words/student",
        "books/teacher+words",
    )


def test_points_and_progress_follow_a_running_trial(bench: Any) -> None:
    seen: list[int] = []

    def look(event: Any) -> None:
        if isinstance(event, AttemptProgress):
            seen.append(len(bench.store.points("words/a", "loss", stage=1)))

    bench.listen = look
    bench.run(make_trial("a", "load a", seconds=1.5, steps=15))
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == 15
    assert bench.heard(StagePublished)[-1].key == "a"


def test_the_folder_of_an_attempt_holds_its_plan(bench: Any) -> None:
    bench.run(make_trial("a", "load a"))
    folder = bench.root.attempt("words", "a", 1)
    names = ["heartbeat", "log.txt", "points.jsonl", "record.json", "trial.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder / "trial.json").read_text())["stages"][1]["key"] == "a"


@pytest.mark.realtime
def test_a_trial_costs_less_than_half_a_second_on_a_warm_worker(bench: Any) -> None:
    count = 20
    launcher = LocalLauncher(bench.root, command=fake_worker.COMMAND)
    started = time.monotonic()
    bench.run(*(make_trial(f"t{index}", f"load t{index}") for index in range(count)), launcher=launcher)
    assert (time.monotonic() - started) / count < 0.5
    assert len(finished(bench)) == count
