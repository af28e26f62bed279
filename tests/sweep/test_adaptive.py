"""Trials that are suggested while a sweep runs, and trials that are given up."""

from typing import Any

from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.events import StagePublished, TrialFailed, TrialStarted
from prunegpt.sweep.interrupt import Interrupt
from tests.support import fake_worker
from tests.support.fork_launcher import ForkLauncher
from tests.support.searches import GiveUp, Suggestions, searched, suggestion
from tests.support.sweep_plans import make_plan, make_trial


def run(bench: Any, plan: Any, slots: int = 1, **options: Any) -> Any:
    bench.events.clear()
    launcher = ForkLauncher(fake_worker.run, slots)

    def hear(event: Any) -> None:
        bench.events.append(event)
        bench.listen(event)

    return run_sweep(plan, bench.root, bench.store, launcher, on_event=hear, **options)


def test_suggested_trials_run_when_nothing_planned_may(bench: Any) -> None:
    suggestions = Suggestions((0, suggestion("found-1", "load f1")), (2, suggestion("found-2", "load f2")))
    outcome = run(bench, searched(make_trial("a", "load a")), suggester=suggestions)
    assert outcome.finished == ("words/a", "words/found-1", "words/found-2")
    assert outcome.ok
    assert [(result.name, result.state) for result in suggestions.told] == [
        ("a", "finished"),
        ("found-1", "finished"),
        ("found-2", "finished"),
    ]
    assert all(result.evaluation and result.shown for result in suggestions.told)


def test_a_suggestion_fills_a_slot_that_would_be_empty(bench: Any) -> None:
    suggestions = Suggestions((0, suggestion("found-1", "other f1")))
    run(bench, searched(make_trial("a", "load a", seconds=0.5)), slots=2, suggester=suggestions)
    assert [event.trial for event in bench.heard(TrialStarted)] == ["words/a", "words/found-1"]
    assert [result.name for result in suggestions.told] == ["found-1", "a"]


def test_the_suggester_is_told_of_every_way_to_end(bench: Any) -> None:
    suggestions = Suggestions(
        (0, suggestion("fails", "load f", fail="f")),
        (1, suggestion("diverges", "load d", diverge="d")),
        (2, suggestion("doomed", "load d e")),
        (3, suggestion("again", "load a")),
        (4, suggestion("copy", "load a")),
        (5, suggestion("orphan", "load o", needs="f")),
    )
    run(bench, searched(), suggester=suggestions)
    assert [(result.name, result.state, result.reason) for result in suggestions.told] == [
        ("fails", "failed", "exception"),
        ("diverges", "diverged", "diverged"),
        ("doomed", "diverged", "diverged"),
        ("again", "finished", ""),
        ("copy", "finished", ""),
        ("orphan", "failed", "dependency"),
    ]
    assert bench.noted("computed").count("a") == 1


def test_a_suggestion_may_need_what_a_planned_trial_publishes(bench: Any) -> None:
    suggestions = Suggestions((0, suggestion("student", "load kd", needs="teach")))
    outcome = run(bench, searched(make_trial("teacher", "big teach", seconds=0.3)), slots=2, suggester=suggestions)
    assert outcome.ok
    assert bench.noted("computed").index("teach") < bench.noted("computed").index("kd")


def test_suggested_trials_stay_shown_and_are_not_run_again(bench: Any) -> None:
    run(bench, searched(make_trial("a", "load a")), suggester=Suggestions((0, suggestion("found-1", "load f1"))))
    again = Suggestions((0, suggestion("found-1", "load f1")))
    outcome = run(bench, searched(make_trial("b", "load b")), suggester=again)
    assert outcome.finished == ("words/b",)
    assert [(result.name, result.state) for result in again.told] == [("b", "finished"), ("found-1", "finished")]
    shown = {result.name: result.shown for result in bench.store.results("words", shown=None)}
    assert shown == {"a": False, "b": True, "found-1": True}
    run(bench, make_plan(make_trial("b", "load b")))
    assert not bench.store.result("words/found-1").shown
    run(bench, searched(make_trial("b", "load b")), suggester=Suggestions())
    assert bench.store.result("words/found-1").shown


def test_a_suggestion_that_was_interrupted_goes_on_in_the_next_run(bench: Any) -> None:
    interrupt = Interrupt()
    bench.listen = lambda event: interrupt.request() if isinstance(event, StagePublished) else None
    slow = suggestion("found-1", "load f1", seconds=2.0, steps=200)
    outcome = run(bench, searched(), suggester=Suggestions((0, slow)), interrupt=interrupt)
    assert outcome.waiting == ("words/found-1",)
    bench.listen = lambda _: None
    assert run(bench, searched(), suggester=Suggestions()).finished == ("words/found-1",)


def test_only_suggests_where_it_names_the_search(bench: Any) -> None:
    plan = searched(make_trial("a", "load a"), make_trial("b", "load b"))
    suggestions = Suggestions((0, suggestion("found-1", "load f1")))
    assert run(bench, plan, suggester=suggestions, only="a").finished == ("words/a",)
    assert run(bench, plan, suggester=suggestions, only="found*").finished == ("words/found-1",)


def test_a_trial_that_is_given_up_is_stopped_and_says_why(bench: Any) -> None:
    stopper, suggestions = GiveUp("bad"), Suggestions()
    trials = make_trial("bad", "load b", seconds=60.0, steps=6000), make_trial("good", "load g")
    outcome = run(bench, make_plan(*trials), early_stopper=stopper, suggester=suggestions)
    assert (outcome.finished, outcome.given_up, outcome.failed) == (("words/good",), ("words/bad",), ())
    assert outcome.ok
    result = bench.store.result("words/bad")
    assert (result.state, result.reason) == ("stopped", "early-stop")
    assert result.error == "worse than the median of the others at 100 tokens."
    assert bench.store.points("words/bad", "loss", stage=1)
    assert stopper.ended == [("bad", "stopped"), ("good", "finished")]
    assert [told.state for told in suggestions.told] == ["stopped", "finished"]
    assert [event.retried for event in bench.heard(TrialFailed)] == [False]
    assert run(bench, make_plan(*trials), early_stopper=stopper).unchanged == ("words/bad", "words/good")
