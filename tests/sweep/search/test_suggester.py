"""Duplicates, invalid suggestions, budgets, and a search that goes on after its process died or its spec changed."""

import math
from typing import Any

import pytest

from prunegpt.records import TrialResult
from tests.sweep.search.made import SPACE, Run, plan_of, result_of, search_plan

SAMPLERS = {
    "random": {},
    "tpe": {"sampler_options": {"n_startup_trials": 4}},
    "nsga2": {"sampler_options": {"population_size": 4}},
    "qmc": {},
}
assert SAMPLERS
SMALL = {"kind": ["a", "b", "c"], "n": {"low": 1, "high": 2}}


def stopping(plan: Any) -> tuple[str, dict[str, Any]]:
    """Some of every way to end."""
    if plan.number % 5 == 0:
        return "failed", {"reason": "exception"}
    return ("stopped", {"reason": "early-stop"}) if plan.number % 4 == 0 else ("finished", {})


@pytest.mark.parametrize("objectives", [["perplexity"], ["perplexity", "sparsity"]], ids=["one", "two"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_whose_process_dies_at_any_instant_is_as_if_it_had_not(sampler: str, objectives: list[str]) -> None:
    plan = search_plan(sampler=sampler, objectives=objectives, seed=9, **SAMPLERS[sampler])
    undisturbed = Run(plan, 2)
    undisturbed.ends = stopping
    expected = undisturbed.go(16)
    for moments in ((5,), (1, 1, 1), (3, 8)):
        run = Run(plan, 2)
        run.ends = stopping
        for moment in moments:
            run.go(moment)
            run.open()
        run.go(16 - sum(moments))
        assert run.chosen == expected
        assert {one.plan.study for one in run.store.values()} == {0}


def test_a_process_that_died_before_its_suggestion_was_kept_suggests_it_again() -> None:
    run = Run(search_plan(seed=3))
    run.go(12)
    lost = run.search.suggest()
    run.open()
    again = run.search.suggest()
    assert lost is not None
    assert again == lost


def test_what_was_stored_and_not_told_is_told_at_the_start() -> None:
    run = Run(search_plan(seed=3), 2)
    run.go(12)
    undisturbed = Run(search_plan(seed=3), 2)
    undisturbed.go(12)
    plan = run.waiting[0]
    undisturbed.search.tell(result_of(plan))
    run.store[plan.number] = result_of(plan, ended=99.0)
    run.open()
    following = run.search.suggest()
    assert following is not None
    assert following == undisturbed.search.suggest()
    assert following.told[-1] == plan.number


def test_duplicates_are_not_run_and_are_told_what_the_first_came_to() -> None:
    run = Run(search_plan(space=SMALL, seed=0), 2)
    chosen = run.go(20)
    assert len(chosen) == 6
    assert len({tuple(sorted(one.items())) for one in chosen}) == 6
    trials = run.search.study.trials
    assert len(trials) > 6
    values: dict[str, set[float]] = {}
    for trial in trials:
        values.setdefault(str(trial.params), set()).add(trial.values[0])
    assert all(len(found) == 1 for found in values.values())
    doubles = [trial for trial in trials if trial.user_attrs.get("duplicate")]
    assert len(doubles) == len(trials) - 6
    assert {trial.user_attrs["trial"] for trial in doubles} <= {one.name for one in run.store.values()}


def test_a_space_that_is_used_up_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(search_plan(space=SMALL, seed=0))
    run.go(20)
    assert run.search.suggest() is None
    assert "were trials that there are already" in run.search.exhausted
    assert "search s ends early" in caplog.text


def test_a_duplicate_of_a_running_trial_is_told_when_that_ends() -> None:
    run = Run(search_plan(space={"kind": ["a", "b"]}, seed=0), 2)
    first, second = run.search.suggest(), run.search.suggest()
    assert first
    assert second
    assert run.search.suggest() is None
    assert not run.search.exhausted  # it may be that a trial that runs makes room for another thought
    waiting = [trial for trial in run.search.study.trials if not trial.state.is_finished()]
    assert len(waiting) > 2
    run.search.tell(result_of(first))
    run.search.tell(result_of(second))
    told = run.search.study.trials
    assert all(trial.state.is_finished() for trial in told)
    assert len({trial.values[0] for trial in told if trial.params == {"kind": "a"}}) == 1
    assert run.search.suggest() is None
    assert run.search.exhausted


def test_an_exhausted_search_that_goes_on_is_exhausted_again() -> None:
    run = Run(search_plan(space=SMALL, seed=0), 2)
    run.go(20)
    names = [one.name for one in run.store.values()]
    run.open()
    run.go(5)
    assert [one.name for one in run.store.values()] == names
    assert run.search.exhausted
    assert {one.plan.study for one in run.store.values()} == {0}


def test_questions_in_vain_are_repeated_too() -> None:
    """A search that had nothing new while trials ran, and then had: told what ended in between."""
    space = {"kind": ["a", "b"], "extra": {"low": 0.0, "high": 1.0, "when": {"kind": "b"}}}
    plan = search_plan(space=space, seed=0, sampler="random")
    run = Run(plan, 2)
    run.go(3)
    run.search._since.append(0)  # as if it had asked in vain
    run.search._ask(run.search._last + 1)  # it has an answer, so repeating finds no vain question there
    run.go(3)
    run.open()
    assert {one.plan.study for one in run.store.values()} == {0}
    following = run.search.suggest()
    assert following is not None
    assert following.study == 1


def test_suggestions_that_make_no_trial_are_failures_and_not_trials() -> None:
    run = Run(search_plan(space={"kind": ["good", "invalid"], "x": {"low": 0.0, "high": 1.0}}, seed=0))
    chosen = run.go(8)
    assert len(chosen) == 8
    assert {one["kind"] for one in chosen} == {"good"}
    invalid = [trial for trial in run.search.study.trials if trial.params["kind"] == "invalid"]
    assert invalid
    assert {trial.state.name for trial in invalid} == {"FAIL"}
    assert {trial.user_attrs["invalid"] for trial in invalid} == {"that cannot be."}


def test_a_search_without_any_valid_trial_ends() -> None:
    run = Run(search_plan(space={"kind": ["invalid"]}))
    assert run.go(3) == []
    assert run.search.exhausted


BUDGETS = {
    "trials": ({"n_trials": 3}, 3),
    "tokens": ({"n_trials": None, "max_tokens": 250}, 3),
    "seconds": ({"n_trials": None, "max_seconds": 7.0}, 4),
}
assert BUDGETS


@pytest.mark.parametrize(("fields", "trials"), BUDGETS.values(), ids=BUDGETS.keys())
def test_a_budget_ends_a_search_and_counts_what_was_before(fields: dict[str, Any], trials: int) -> None:
    run = Run(search_plan(**fields))
    run.go(2)
    run.open()
    assert len(run.go(20)) == trials
    assert not run.search.exhausted


def test_tokens_of_a_stopped_trial_count_and_those_of_a_shared_stage_count_once() -> None:
    run = Run(search_plan(n_trials=None, max_tokens=1000))
    run.open(tokens=lambda _: 400)
    run.ends = lambda _: ("stopped", {"reason": "early-stop"})
    assert len(run.go(20)) == 3


def test_a_wider_space_takes_over_the_trials_that_fit() -> None:
    run = Run(search_plan(n_trials=20))
    run.go(8)
    before = run.chosen
    wider = search_plan(space={**SPACE, "x": {"low": -5.0, "high": 5.0}}, n_trials=20)
    run.open(wider)
    assert [dict(trial.params) for trial in run.search.study.trials] == before
    assert all(trial.values is not None for trial in run.search.study.trials)
    run.go(6)
    expected = run.chosen
    assert expected[:8] == before
    assert [one.name for one in run.store.values()] == [f"s-{number:03d}" for number in range(1, 15)]
    assert [one.plan.study for one in run.store.values()] == [0] * 8 + [1] * 6
    assert any(abs(chosen["x"]) > 3 for chosen in expected[8:])
    run.open()  # and that study is repeated in turn
    run.go(20)
    assert [one.plan.study for one in run.store.values()] == [0] * 8 + [1] * 12


def test_a_new_study_does_not_draw_the_numbers_of_the_old_one_again() -> None:
    run = Run(search_plan(sampler="random"))
    run.go(6)
    run.open(search_plan(sampler="random", n_trials=200, space={**SPACE, "more": [1, 2]}))
    assert not run.search.kept  # nothing fits a space with another field
    following = run.search.suggest()
    assert following is not None
    assert following.number == 7
    assert following.swept["x"] not in [chosen["x"] for chosen in run.chosen]


def test_a_narrower_space_keeps_what_still_fits() -> None:
    run = Run(search_plan(n_trials=12))
    run.go(10)
    narrow = search_plan(space={**SPACE, "x": {"low": 0.0, "high": 3.0}}, n_trials=12)
    run.open(narrow)
    inside = {number for number, one in run.store.items() if one.swept["x"] >= 0}
    assert 0 < len(inside) < 10
    assert run.search.kept == inside
    run.go(20)
    assert len(run.search.kept) == 12
    assert max(run.store) == 10 + 12 - len(inside)


def test_another_sampler_takes_over_too() -> None:
    run = Run(search_plan(sampler="tpe"))
    run.go(12)
    run.open(search_plan(sampler="random"))  # which differs from the other after its first ten
    run.go(3)
    assert [one.plan.study for one in run.store.values()] == [0] * 12 + [1] * 3


def test_a_changed_configuration_of_a_trial_is_not_taken_over() -> None:
    """The base of the spec has changed: the same choices have other keys."""
    run = Run(search_plan())
    run.go(4)
    for number, one in run.store.items():
        stages = tuple(stage.model_copy(update={"key": f"old {stage.key}"}) for stage in one.plan.stages)
        run.store[number] = one.model_copy(update={"plan": one.plan.model_copy(update={"stages": stages})})
    run.open()
    assert not run.search.kept
    following = run.search.suggest()
    assert following is not None
    assert following.number == 5


def test_a_failed_trial_that_is_run_again_is_told_what_it_came_to() -> None:
    run = Run(search_plan(seed=1))
    run.ends = lambda plan: ("failed", {"reason": "exception"}) if plan.number == 2 else ("finished", {})
    run.go(5)
    plan = plan_of(run.plan, run.store[2].swept, 2)
    run.store[2] = result_of(plan, "waiting")
    run.open()
    assert run.search.running == 0
    states = [trial.state.name for trial in run.search.study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    run.search.tell(result_of(plan, ended=50.0))
    last = run.search.study.trials[-1]
    assert last.state.name == "COMPLETE"
    assert last.params == dict(plan.swept)
    run.search.tell(result_of(plan, ended=50.0))
    assert len(run.search.study.trials) == 6


def test_trials_of_others_are_passed_over() -> None:
    run = Run(search_plan())
    run.go(2)
    other = plan_of(search_plan(), {"x": 0.0, "n": 1, "kind": "plain"}, 2).model_copy(update={"search": "else"})
    run.search.tell(result_of(other))
    run.search.tell(result_of(other.model_copy(update={"search": ""})))
    assert len(run.search.study.trials) == 2


def test_what_diverged_breaks_every_constraint() -> None:
    run = Run(search_plan(constraints=["sparsity >= 0.1"]))
    run.ends = lambda _: ("diverged", {"reason": "diverged"})
    run.go(1)
    (trial,) = run.search.study.trials
    assert trial.values == [math.inf]
    assert trial.constraints == {"sparsity >= 0.1": math.inf}


@pytest.mark.parametrize("name", ["text", "split", "protocol"])
def test_a_trial_that_was_measured_otherwise_is_told_as_failed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It may have any perplexity: a sampler that believed it would go where it is measured that way."""

    def odd(one: TrialResult) -> TrialResult:
        measured = one.stages[-1].evaluation
        assert measured is not None
        last = one.stages[-1].model_copy(update={"evaluation": measured.model_copy(update={name: "other"})})
        return one.model_copy(update={"stages": (*one.stages[:-1], last)})

    run = Run(search_plan())
    run.go(2)
    plan = run.search.suggest()
    assert plan is not None
    run.search.tell(odd(result_of(plan, ended=9.0)))
    assert [trial.state.name for trial in run.search.study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert f"cannot compare {plan.name} with the trials before it: the {name} is" in caplog.text
    sparse = Run(search_plan(objectives=[{"metric": "sparsity", "direction": "maximize"}]))
    sparse.go(1)
    plan = sparse.search.suggest()
    assert plan is not None
    sparse.search.tell(odd(result_of(plan, ended=9.0)))
    assert [trial.state.name for trial in sparse.search.study.trials] == ["COMPLETE"] * 2
