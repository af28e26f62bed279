"""A sweep that has what was asked for starts nothing more."""

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prunegpt.spec.plan import SearchPlan
from prunegpt.spec.search import SearchSpec, TargetSpec
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.events import TargetReached, TrialStarted
from tests.support import fake_worker
from tests.support.fork_launcher import ForkLauncher
from tests.support.searches import Suggestions, searched, suggestion
from tests.support.sweep_plans import make_plan, make_trial

TARGET = TargetSpec(metric="perplexity", value=3, direction=None)  # the fake worker's is the length of the last key


def run(bench: Any, plan: Any, target: TargetSpec | None = TARGET, slots: int = 1, **options: Any) -> Any:
    """Runs a plan; the trial `slow` ends when the target is reached, and not before."""

    def held(folder: Path) -> str:
        while "/slow/" in str(folder) and not (bench.root.path / "reached").exists():
            time.sleep(0.01)
        return fake_worker.run(folder)

    def hear(event: Any) -> None:
        bench.events.append(event)
        if isinstance(event, TargetReached):
            (bench.root.path / "reached").touch()

    bench.events.clear()
    plan = plan.model_copy(update={"target": target})
    return run_sweep(plan, bench.root, bench.store, ForkLauncher(held, slots), on_event=hear, **options)


def test_nothing_is_started_after_a_trial_that_reaches_the_target_and_what_runs_ends(bench: Any) -> None:
    plan = make_plan(
        make_trial("bad", "load aaaaaa"),
        make_trial("slow", "load bbbbbb"),
        make_trial("good", "load ccc"),
        make_trial("never", "load d"),
    )
    outcome = run(bench, plan, slots=2)
    assert [event.trial for event in bench.heard(TrialStarted)] == ["words/bad", "words/slow", "words/good"]
    assert outcome.finished == ("words/bad", "words/slow", "words/good")
    assert outcome.waiting == ("words/never",)
    assert outcome.reached == "words/good"
    assert outcome.ok
    assert bench.heard(TargetReached) == [TargetReached("words/good", "perplexity", 3.0, 3.0)]
    assert bench.states()["never"] == "waiting"


def test_the_next_run_starts_nothing_either_until_the_target_is_another(bench: Any) -> None:
    plan = make_plan(make_trial("good", "load ccc"), make_trial("never", "load d"))
    run(bench, plan)
    again = run(bench, plan)
    assert (again.finished, again.waiting, again.reached) == ((), ("words/never",), "words/good")
    other = run(bench, plan, TargetSpec(metric="perplexity", value=0.5, direction=None))
    assert (other.finished, other.reached, other.waiting) == (("words/never",), "", ())


def test_a_search_asks_for_no_more_suggestions(bench: Any) -> None:
    suggestions = Suggestions((0, suggestion("found-1", "load fff")), (1, suggestion("found-2", "load f")))
    outcome = run(bench, searched(), suggester=suggestions)
    assert outcome.finished == ("words/found-1",)
    assert [result.name for result in suggestions.told] == ["found-1"]
    assert len(suggestions.left) == 1


def test_a_trial_that_breaks_a_constraint_of_the_search_reaches_no_target(bench: Any) -> None:
    plan = make_plan(make_trial("dense", "load ccc"), make_trial("later", "load dddd"))
    spec = SearchSpec.model_validate({"space": {"a": [1, 2]}, "n_trials": 1, "constraints": ["tokens >= 1"]})
    search = SearchPlan(name="found", index=0, order=2, spec=spec)
    outcome = run(bench, plan.model_copy(update={"searches": (search,)}))
    assert outcome.reached == ""
    assert set(outcome.finished) >= {"words/dense", "words/later"}


def test_failures_and_trials_of_other_sweeps_reach_no_target(bench: Any) -> None:
    plan = make_plan(
        make_trial("failed", "load a", fail="a"),
        make_trial("other", "load b", sweep="elsewhere"),
        make_trial("taught", "load c", implicit=True),
        make_trial("last", "load dd"),
    )
    outcome = run(bench, plan)
    assert outcome.reached == "words/last"


def test_a_trial_that_is_measured_otherwise_than_the_first_reaches_no_target(bench: Any) -> None:
    plan = make_plan(
        make_trial("first", "load aaaaaa"),
        make_trial("otherwise", "load bb", evaluation_key="of another text"),
        make_trial("good", "load ccc"),
    )
    assert run(bench, plan).reached == "words/good"


@pytest.mark.parametrize(
    ("direction", "value", "reached"),
    [("minimize", 4.0, [True, True, False]), ("maximize", 4.0, [False, True, True]), (None, 4.0, [True, True, False])],
)
def test_a_target_is_reached_at_its_value_and_beyond(direction: Any, value: float, reached: list[bool]) -> None:
    target = TargetSpec(metric="perplexity", value=value, direction=direction)
    assert [target.reached({"perplexity": found}) for found in (3.0, 4.0, 5.0)] == reached
    assert not target.reached({"perplexity": None})
    assert not target.reached({})


def test_what_is_no_metric_is_refused() -> None:
    assert TargetSpec(metric="sparsity", value=0.9, direction=None).reached({"sparsity": 0.95})
    with pytest.raises(ValidationError, match=r"unknown metric 'perplexty'\. Did you mean 'perplexity'"):
        TargetSpec(metric="perplexty", value=1, direction=None)
