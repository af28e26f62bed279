"""Trials are given up exactly where Optuna's rule, fed by hand, says so."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from prunegpt.errors import PruneGPTError
from prunegpt.points import Point
from prunegpt.records import AttemptRecord
from prunegpt.registry import EARLY_STOPS
from prunegpt.root import Root
from prunegpt.spec.plan import SearchPlan, SweepPlan, TrialPlan
from prunegpt.spec.search import EarlyStopSpec, SearchSpec
from prunegpt.store import Store
from prunegpt.sweep.early_stop import CurveStopper, open_early_stop
from tests.support.sweep_plans import make_plan, make_trial

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
TIME = itertools.count(1)
EVERY = 100

RULES: dict[str, dict[str, Any]] = {
    "median": {"n_startup_trials": 2},
    "percentile": {"percentile": 30.0, "n_startup_trials": 2, "n_warmup_steps": 2},
    "successive_halving": {"min_resource": 1, "reduction_factor": 2},
    "hyperband": {"min_resource": 1, "max_resource": 8, "reduction_factor": 2},
    "threshold": {"upper": 60.0},
    "patient": {"patience": 1},
    "wilcoxon": {"p_threshold": 0.3},
}


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


def point(tokens: int, value: float | None, *, stage: int = 1, name: str = "perplexity") -> Point:
    return Point(
        stage=stage, step=tokens // 10, epoch=0.0, name=name, value=value, time=float(next(TIME)), tokens=tokens
    )


def curve(trial: int, parts: int = 8) -> list[float]:
    """Falls, but not for all trials alike: some are good at first and bad later."""
    level = 40 + 7 * ((trial * 5) % 11)
    return [level / (1 + 0.1 * part) + 9 * math.sin(trial + part) for part in range(1, parts + 1)]


def stopper_of(method: str = "median", store: Store | None = None, **fields: Any) -> CurveStopper:
    spec = EarlyStopSpec.model_validate({"method": method, "every": EVERY, "options": RULES[method], **fields})
    return CurveStopper(spec, "words", (), store)


def by_hand(method: str, curves: Sequence[Sequence[float]]) -> list[int | None]:
    """The bucket after which Optuna would give each of these trials up, one after another."""
    options = {"wrapped_pruner": None, **RULES[method]} if method == "patient" else RULES[method]
    study = optuna.create_study(study_name="words", pruner=EARLY_STOPS.load(method)(**options))
    found: list[int | None] = []
    for values in curves:
        trial = study.ask()
        found.append(None)
        for step, value in enumerate(values, 1):
            trial.report(value, step)
            if trial.should_prune():
                found[-1] = step
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, values[-1])
    return found


def fed(stopper: CurveStopper, trial: TrialPlan, values: Sequence[float]) -> int | None:
    """The bucket after which a trial is given up that measures at the end of each bucket, and logs in between."""
    for step, value in enumerate(values, 1):
        logged = point(step * EVERY - 30, 1.0, name="loss")
        reason = stopper.observe(trial, [logged, point(step * EVERY, value)])
        if reason:
            assert f"after {step * EVERY:,} tokens" in reason
            stopper.end(trial, "stopped")
            return step
    stopper.end(trial, "finished")
    return None


def trials(count: int) -> list[TrialPlan]:
    return [make_trial(f"t{index}", f"load f{index}") for index in range(count)]


@pytest.mark.parametrize("method", RULES)
def test_decisions_are_those_of_the_rule_fed_by_hand(method: str) -> None:
    assert set(RULES) <= set(EARLY_STOPS.names())
    curves = [curve(index) for index in range(14)]
    stopper = stopper_of(method)
    ours = [fed(stopper, trial, values) for trial, values in zip(trials(14), curves, strict=True)]
    assert ours == by_hand(method, curves)
    assert any(ours), "a rule that never says stop tests nothing"
    assert None in ours


def test_points_may_come_in_any_portions() -> None:
    curves = [curve(index) for index in range(10)]
    expected = by_hand("median", curves)
    for size in (1, 3, 100):
        stopper = stopper_of()
        for trial, values, stop in zip(trials(10), curves, expected, strict=True):
            points = [point(step * EVERY, value) for step, value in enumerate(values, 1)]
            told = [stopper.observe(trial, points[at : at + size]) for at in range(0, len(points), size)]
            reason = next(filter(None, told), None)
            assert (reason is None) == (stop is None)
            if stop is not None:
                assert f"after {stop * EVERY:,} tokens" in str(reason)
            stopper.end(trial, "finished" if stop is None else "stopped")


def steps_of(stopper: CurveStopper, trial: TrialPlan) -> dict[int, float]:
    return dict(stopper._curves[f"words/{trial.name}"].trial._cached_frozen_trial.intermediate_values)


def test_a_bucket_has_the_latest_value_at_or_before_its_end() -> None:
    stopper, (trial,) = stopper_of(), trials(1)
    stopper.observe(trial, [point(40, 9.0), point(90, 8.0), point(101, 7.0)])
    assert steps_of(stopper, trial) == {1: 8.0}
    stopper.observe(trial, [point(200, 6.0)])
    assert steps_of(stopper, trial) == {1: 8.0, 2: 6.0}
    stopper.observe(trial, [point(450, 1.0, name="loss")])
    assert steps_of(stopper, trial) == {1: 8.0, 2: 6.0, 3: 6.0, 4: 6.0}


def test_a_bucket_without_a_value_is_left_out() -> None:
    stopper, (trial,) = stopper_of(), trials(1)
    stopper.observe(trial, [point(250, 5.0), point(300, 4.0)])
    assert steps_of(stopper, trial) == {3: 4.0}


def test_tokens_add_up_over_the_chain_and_those_of_the_source_do_not_count() -> None:
    stopper = stopper_of()
    trial = make_trial("a", "load one two")
    stopper.observe(trial, [point(5000, 50.0, stage=0), point(150, 9.0), point(150, 0.5, name="sparsity")])
    assert steps_of(stopper, trial) == {1: 50.0}  # at no token of its own the source stage had it
    stopper.observe(trial, [point(50, 8.0, stage=2), point(120, 7.0, stage=2)])
    assert steps_of(stopper, trial) == {1: 50.0, 2: 8.0}


def test_a_resumed_attempt_goes_on_where_it_was() -> None:
    stopper, (trial,) = stopper_of(), trials(1)
    stopper.observe(trial, [point(100, 9.0), point(200, 8.0)])
    stopper.end(trial, "waiting")
    stopper.observe(trial, [point(150, 99.0), point(200, 8.0), point(300, 7.0)])
    assert steps_of(stopper, trial) == {1: 9.0, 2: 8.0, 3: 7.0}


def beaten(stopper: CurveStopper) -> None:
    """Some good trials to compare with."""
    for index in range(4):
        fed(stopper, make_trial(f"good{index}", f"load g{index}"), [10.0 + index] * 8)


def test_a_loss_that_is_no_number_is_given_up() -> None:
    stopper = stopper_of()
    beaten(stopper)
    assert stopper.observe(trials(1)[0], [point(EVERY, None)])


@pytest.mark.parametrize("way", ["implicit", "of another sweep", "awaited", "published"])
def test_teachers_are_not_given_up_before_they_can_teach(way: str) -> None:
    spec = EarlyStopSpec.model_validate({"every": EVERY, "options": RULES["median"]})
    stopper = CurveStopper(spec, "words", {"awaited": ["more"], "published": ["teach"]}.get(way, []))
    beaten(stopper)
    trial = make_trial("bad", "load teach more", implicit=way == "implicit")
    if way == "of another sweep":
        trial = trial.model_copy(update={"sweep": "others"})
    told = stopper.observe(trial, [point(EVERY, 500.0), point(EVERY, 0.5, name="sparsity")])
    assert told is None
    later = stopper.observe(trial, [point(EVERY, 500.0, stage=2)])
    assert (later is not None) == (way == "published")


def test_the_width_of_a_bucket_is_a_twentieth_of_the_first_trials_training() -> None:
    spec = EarlyStopSpec()
    stopper = CurveStopper(spec, "words", ())
    first, second = trials(2)
    stopper.observe(first, [Point(stage=1, step=0, epoch=0.0, name="total_steps", value=200.0, time=0.0)])
    stopper.observe(first, [point(160, 9.0, name="loss")])  # 10 tokens per step
    assert stopper.every == 100
    stopper.observe(second, [Point(stage=1, step=0, epoch=0.0, name="total_steps", value=999.0, time=0.0)])
    assert stopper.every == 100
    planned = make_trial("planned", "load f")
    train = {"max_steps": 40, "per_device_train_batch_size": 2}
    stage = planned.stages[1].model_copy(
        update={"finetune": planned.stages[1].finetune.model_copy(update={"train": train})}  # type: ignore[union-attr]
    )
    stopper = CurveStopper(spec, "words", ())
    stopper.observe(planned.model_copy(update={"stages": (planned.stages[0], stage)}), [point(8, 9.0)])
    assert stopper.every == 40 * 2 * 8 // 20


def test_what_a_source_was_trained_on_does_not_widen_the_buckets() -> None:
    stopper = CurveStopper(EarlyStopSpec(), "words", ())
    (first,) = trials(1)
    for stage, steps in ((0, 5000.0), (1, 200.0)):
        stopper.observe(first, [Point(stage=stage, step=0, epoch=0.0, name="total_steps", value=steps, time=0.0)])
        stopper.observe(first, [point(160, 9.0, name="loss", stage=stage)])
        assert stopper.every == (None if stage == 0 else 100)


# -- history -----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(Root(tmp_path / "runs")) as opened:
        yield opened


def kept(store: Store, ids: dict[str, int], trial: TrialPlan, values: Sequence[float], state: str | None) -> None:
    """An attempt in the store, as the coordinator would have left it."""
    attempt = store.start_attempt(ids[trial.name])
    points = [point(step * EVERY, value) for step, value in enumerate(values, 1)]
    store.add_points(attempt.id, [*points, point(len(values) * EVERY, 0.5, name="sparsity")])
    if state is not None:
        reason = "early-stop" if state == "stopped" else ""
        record = AttemptRecord(
            sweep="words",
            trial=trial.name,
            attempt=attempt.number,
            state=state,
            reason=reason,
            ended=float(next(TIME)),
        )
        store.finish_attempt(record)


def plan_with(spec: EarlyStopSpec | None, *planned: TrialPlan) -> SweepPlan:
    return make_plan(*planned).model_copy(update={"early_stop": spec})


@pytest.mark.parametrize("method", ["median", "successive_halving", "hyperband", "wilcoxon"])
def test_history_comes_from_the_store(method: str, store: Store) -> None:
    curves = [curve(index) for index in range(12)]
    expected = by_hand(method, curves)
    planned = trials(12)
    spec = EarlyStopSpec.model_validate({"method": method, "every": EVERY, "options": RULES[method]})
    plan = plan_with(spec, *planned)
    ids = {saved.plan.name: saved.id for saved in store.save_sweep(plan)}
    for trial, values, stop in zip(planned[:7], curves, expected, strict=False):
        kept(store, ids, trial, values[:stop], "finished" if stop is None else "stopped")
    stopper = open_early_stop(plan, store)
    assert isinstance(stopper, CurveStopper)
    rest = [fed(stopper, trial, values) for trial, values in zip(planned[7:], curves[7:], strict=True)]
    assert rest == expected[7:]


def test_a_trial_that_was_interrupted_goes_on_with_its_curve(store: Store) -> None:
    planned = trials(2)
    plan = plan_with(EarlyStopSpec.model_validate({"every": EVERY, "options": RULES["median"]}), *planned)
    ids = {saved.plan.name: saved.id for saved in store.save_sweep(plan)}
    kept(store, ids, planned[0], [9.0, 8.0], None)
    stopper = open_early_stop(plan, store)
    assert isinstance(stopper, CurveStopper)
    stopper.observe(planned[0], [point(300, 7.0)])
    assert steps_of(stopper, planned[0]) == {1: 9.0, 2: 8.0, 3: 7.0}


def test_a_stage_found_published_counts_as_if_the_trial_had_computed_it(store: Store) -> None:
    first, second = make_trial("first", "load shared a"), make_trial("second", "load shared b")
    plan = plan_with(EarlyStopSpec.model_validate({"every": EVERY, "options": RULES["median"]}), first, second)
    ids = {saved.plan.name: saved.id for saved in store.save_sweep(plan)}
    stopper = open_early_stop(plan, store)
    assert isinstance(stopper, CurveStopper)
    kept(store, ids, first, [9.0, 8.0, 7.0], "finished")
    told = stopper.observe(second, [point(300, 7.0), point(300, 0.5, name="sparsity"), point(100, 6.0, stage=2)])
    assert told is None
    assert steps_of(stopper, second) == {1: 9.0, 2: 8.0, 3: 7.0, 4: 6.0}


def test_a_trial_that_came_from_the_cache_is_compared_with_too(store: Store) -> None:
    first, copy = make_trial("first", "load a"), make_trial("copy", "load a")
    plan = plan_with(EarlyStopSpec.model_validate({"every": EVERY, "options": RULES["median"]}), first, copy)
    ids = {saved.plan.name: saved.id for saved in store.save_sweep(plan)}
    stopper = open_early_stop(plan, store)
    assert isinstance(stopper, CurveStopper)
    kept(store, ids, first, [9.0, 8.0], "finished")
    stopper.end(copy, "finished")
    told = next(iter(stopper._studies.values())).trials
    assert [trial.intermediate_values for trial in told] == [{1: 9.0, 2: 8.0}] * 2
    assert [trial.values for trial in told] == [[8.0]] * 2


def test_trials_of_an_earlier_spec_are_no_history_but_those_of_a_search_are(store: Store) -> None:
    search = SearchPlan(name="s", index=0, order=0, spec=SearchSpec(space={"a": {"low": 0, "high": 1}}, n_trials=2))
    gone = make_trial("gone", "load g")
    found = make_trial("s-001", "load s").model_copy(update={"search": "s", "number": 1})
    ids = {saved.plan.name: saved.id for saved in store.save_sweep(make_plan(gone))}
    ids[found.name] = store.add_trial(found).id
    kept(store, ids, gone, [9.0], "finished")
    kept(store, ids, found, [8.0], "finished")
    new = make_trial("new", "load n")
    plan = plan_with(EarlyStopSpec.model_validate({"every": EVERY, "options": RULES["median"]}), new)
    plan = plan.model_copy(update={"searches": (search,)})
    stopper = open_early_stop(plan, store)
    store.save_sweep(plan)  # the coordinator does, before anything runs
    assert isinstance(stopper, CurveStopper)
    stopper.end(new, "failed")
    assert [trial.values for trial in next(iter(stopper._studies.values())).trials] == [[8.0], None]


def test_the_first_points_of_a_run_are_judged_though_the_store_has_them_already(store: Store) -> None:
    curves = [curve(index) for index in range(12)]
    stop = by_hand("median", curves)
    bad = next(index for index, step in enumerate(stop) if step)
    planned = trials(12)
    plan = plan_with(EarlyStopSpec.model_validate({"every": EVERY, "options": RULES["median"]}), *planned)
    ids = {saved.plan.name: saved.id for saved in store.save_sweep(plan)}
    for trial, values, step in zip(planned[:bad], curves, stop, strict=False):
        kept(store, ids, trial, values[:step], "finished" if step is None else "stopped")
    stopper = open_early_stop(plan, store)
    points = [point(step * EVERY, value) for step, value in enumerate(curves[bad], 1)]
    store.add_points(store.start_attempt(ids[planned[bad].name]).id, points)
    assert f"after {stop[bad] * EVERY:,} tokens" in str(stopper.observe(planned[bad], points))  # type: ignore[operator]


def test_a_sweep_without_the_rule_gives_nothing_up(store: Store) -> None:
    assert open_early_stop(plan_with(None), store) is None


def test_an_option_that_a_rule_does_not_take_is_named() -> None:
    with pytest.raises(PruneGPTError, match=r"early stop median does not take the options .*n_startup_trials"):
        stopper_of("median", options={"startup": 3})


def test_trials_that_are_measured_in_different_ways_are_not_compared() -> None:
    """The worse ones have another text, or another tokeniser: nobody can say that they are worse."""
    stopper = stopper_of(options={"n_startup_trials": 1})
    stopper.observe(make_trial("first", "load a"), [point(100, 5.0), point(200, 4.0)])
    stopper.end(make_trial("first", "load a"), "finished")
    worse = [point(100, 50.0), point(200, 40.0)]
    other_text = make_trial("text", "load b", evaluation_key="of another text")
    assert stopper.observe(other_text, worse) is None
    tokenised = make_trial("tokeniser", "load c")
    tokenised = tokenised.model_copy(update={"model": tokenised.model.model_copy(update={"tokenizer": "other"})})
    assert stopper.observe(tokenised, worse) is None
    assert stopper.observe(make_trial("alike", "load d"), worse) is not None


def test_the_loss_of_training_is_compared_whatever_is_measured() -> None:
    stopper = stopper_of(metric="loss", options={"n_startup_trials": 1})
    stopper.observe(make_trial("first", "load a"), [point(100, 5.0, name="loss"), point(200, 4.0, name="loss")])
    stopper.end(make_trial("first", "load a"), "finished")
    other = make_trial("text", "load b", evaluation_key="of another text")
    assert stopper.observe(other, [point(100, 50.0, name="loss"), point(200, 40.0, name="loss")]) is not None
