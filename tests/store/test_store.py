"""What is written is read again: sweeps, attempts, stages, curves; on both databases."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from prunegpt.errors import StoreError
from prunegpt.points import Point
from prunegpt.records import AttemptRecord, Evaluation, SparsityRecord, StageRecord
from prunegpt.root import Root
from prunegpt.spec.plan import SearchPlan, TrialPlan
from prunegpt.spec.schema import TableSpec
from prunegpt.spec.search import SearchSpec
from prunegpt.store import Store
from prunegpt.store.schema import trial
from prunegpt.sweep.coordinator import run_sweep
from tests.support import fake_worker
from tests.support.fork_launcher import ForkLauncher
from tests.support.sweep_plans import make_plan, make_trial

COUNTER = itertools.count()


def stage(key: str, index: int = 0, *, cached: bool = False, perplexity: float | None = 3.5) -> StageRecord:
    measured = Evaluation(
        key="measured",
        protocol="blocks",
        split="test",
        perplexity=perplexity,
        loss=1.25,
        bits_per_byte=None,
        word_perplexity=None,
        tokens=100,
        windows=10,
        finite=perplexity is not None,
    )
    counted = SparsityRecord(pruned=0.5, overall=0.4, selected=10, parameters=20, by_tensor={"a.weight": 0.5})
    kind = "finetune" if index else "load"
    return StageRecord(key=key, kind=kind, index=index, cached=cached, evaluation=measured, sparsity=counted)


def ended(number: int, state: str = "finished", *stages: StageRecord, trial: str = "a", **more: Any) -> AttemptRecord:
    return AttemptRecord(
        sweep="words", trial=trial, attempt=number, state=state, stages=stages, started=1.0, ended=2.0, **more
    )


def point(step: int, value: float | None, name: str = "loss", stage: int = 0) -> Point:
    return Point(stage=stage, step=step, epoch=step / 10, name=name, value=value, time=float(step), tokens=step * 8)


def run(store: Store, trial: TrialPlan, *stages: StageRecord, state: str = "finished") -> int:
    """Saves a sweep of one trial and an attempt of it; gives the attempt's id."""
    (saved,) = store.save_sweep(make_plan(trial))
    started = store.start_attempt(saved.id)
    store.finish_attempt(ended(started.number, state, *stages, trial=trial.name))
    return started.id


def test_a_sweep_is_kept_with_its_tables(store: Store) -> None:
    table = TableSpec(title="T", rows=["a"], columns=["perplexity"], reported={"a": 29.4})
    store.save_sweep(make_plan(make_trial("a"), make_trial("b", implicit=True), tables=[table]))
    (row,) = store.sweeps()
    assert (row.name, row.title, row.spec, row.trials) == ("words", "Words", {"name": "words", "trials": []}, 1)
    assert row.states == {"waiting": 1}
    assert row.created == row.updated
    assert store.tables("words") == (table,)
    assert store.sweep("words") == row


def test_an_unknown_sweep_or_trial_is_told_with_the_nearest(store: Store) -> None:
    store.save_sweep(make_plan(make_trial("pruned90"), name="wikitext2"))
    store.save_sweep(make_plan(make_trial("pruned90", sweep="wikitext2"), name="wikitext2"))
    with pytest.raises(StoreError, match=r"unknown sweep 'wikitxt2'. Did you mean 'wikitext2'"):
        store.results("wikitxt2")
    with pytest.raises(StoreError, match=r"unknown trial of wikitext2 'pruned9'. Did you mean 'pruned90'"):
        store.result("wikitext2/pruned9")
    with pytest.raises(StoreError, match="named SWEEP/TRIAL, got 'pruned90'"):
        store.result("pruned90")
    with pytest.raises(StoreError, match="no trial 99"):
        store.result(99)
    with pytest.raises(StoreError, match="no trial 99"):
        store.points(99)
    with pytest.raises(StoreError, match="no trial 99"):
        store.start_attempt(99)


def test_trials_come_back_in_spec_order_with_their_plans(store: Store) -> None:
    plan = make_plan(make_trial("c@1", "load x", seed=1), make_trial("a"), make_trial("b", implicit=True))
    saved = store.save_sweep(plan)
    results = store.results("words")
    assert [result.name for result in results] == ["c@1", "a", "b"]
    assert [result.id for result in results] == [trial.id for trial in saved]
    first = results[0]
    assert TrialPlan.model_validate(first.plan) == plan.trials[0]
    assert (first.group, first.seed, first.key, first.evaluation_key) == ("c", 1, "x", "measured")
    assert (first.swept, first.config["name"]) == ({"stages.0": "c@1"}, "c@1")
    assert (first.state, first.attempts, first.stages, first.folder, first.started) == ("waiting", 0, (), "", None)
    assert store.result("words/a") == results[1] == store.result(saved[1].id)


def test_saving_again_keeps_what_is_unchanged(store: Store) -> None:
    run(store, make_trial("a", "load a"), stage("load"), stage("a", 1))
    before = store.result("words/a")
    store.save_sweep(make_plan(make_trial("z"), make_trial("a", "load a")))
    after = store.result("words/a")
    assert (after.id, after.state, after.stages, after.order) == (before.id, "finished", before.stages, 1)


@pytest.mark.parametrize("changed", [make_trial("a", "load other"), make_trial("a", "load a", evaluation_key="new")])
def test_a_changed_configuration_waits_again_and_forgets_old_results(store: Store, changed: TrialPlan) -> None:
    run(store, make_trial("a", "load a"), stage("load"), stage("a", 1))
    (saved,) = store.save_sweep(make_plan(changed))
    assert saved.state == "waiting"
    result = store.result("words/a")
    assert (result.state, result.stages, result.attempts, result.folder) == ("waiting", (), 0, "")
    assert store.start_attempt(saved.id).number == 2
    assert [attempt.state for attempt in store.attempts("words/a")] == ["finished", "running"]
    store.save_sweep(make_plan(make_trial("a", "load a")))
    assert len(store.result("words/a").stages) == 2


def test_what_a_spec_takes_out_of_sight_is_told(store: Store) -> None:
    first = make_plan(make_trial("a"), make_trial("b"), make_trial("t", implicit=True))
    assert store.replaced(first) is None
    store.save_sweep(first.model_copy(update={"source": "/one.yaml"}))
    assert store.replaced(first.model_copy(update={"source": "/two.yaml"})) is None  # it has them all
    second = make_plan(make_trial("b"), make_trial("c")).model_copy(update={"source": "/two.yaml"})
    told = store.replaced(second)
    assert told is not None
    assert told.trials == ("a",)
    assert "not in the spec: 1 trial of the sweep (a); they came from another spec of its name, /one.yaml" in str(told)
    assert "another spec" not in str(store.replaced(second.model_copy(update={"source": "/one.yaml"})))
    store.save_sweep(second)
    assert store.replaced(second) is None


def test_a_trial_gone_from_the_spec_is_kept_but_not_shown(store: Store) -> None:
    store.save_sweep(make_plan(make_trial("a"), make_trial("b")))
    store.save_sweep(make_plan(make_trial("b")))
    assert [(result.name, result.shown) for result in store.results("words")] == [("b", True)]
    assert [result.name for result in store.results("words", shown=False)] == ["a"]
    assert {result.name for result in store.results("words", shown=None)} == {"a", "b"}
    assert store.sweeps()[0].states == {"waiting": 1}


def test_attempts_are_numbered_and_say_where_they_lie(store: Store) -> None:
    (saved,) = store.save_sweep(make_plan(make_trial("a", "load a")))
    first = store.start_attempt(saved.id)
    assert (first.number, first.folder) == (1, "trials/words/a/attempt-1")
    assert store.result("words/a").state == "running"
    assert [attempt.id for attempt in store.running_attempts()] == [first.id]
    store.finish_attempt(ended(1, "failed", reason="exception", error="no", trace="line", versions={"torch": "2"}))
    assert store.running_attempts() == []
    (attempt,) = store.attempts("words/a")
    assert (attempt.reason, attempt.error, attempt.trace, attempt.ended) == ("exception", "no", "line", 2.0)
    assert (attempt.chain, attempt.versions) == (("load", "a"), {"torch": "2"})
    assert store.start_attempt(saved.id, at_least=7).number == 7
    assert store.start_attempt(saved.id).number == 8


def test_a_record_of_no_attempt_is_refused(store: Store) -> None:
    store.save_sweep(make_plan(make_trial("a")))
    with pytest.raises(StoreError, match="no attempt 3 of words/a"):
        store.finish_attempt(ended(3))


def test_a_late_record_does_not_end_a_trial_whose_configuration_changed(store: Store) -> None:
    (saved,) = store.save_sweep(make_plan(make_trial("a", "load a")))
    store.start_attempt(saved.id)
    store.save_sweep(make_plan(make_trial("a", "load b")))
    store.finish_attempt(ended(1))
    assert store.result("words/a").state == "waiting"


def test_the_stages_of_the_attempt_that_got_furthest_count(store: Store) -> None:
    (saved,) = store.save_sweep(make_plan(make_trial("a", "load a b")))
    store.start_attempt(saved.id)
    store.finish_attempt(ended(1, "failed", stage("load"), stage("a", 1), reason="signal", error="killed"))
    store.start_attempt(saved.id)
    store.finish_attempt(ended(2, "failed", stage("load", cached=True), reason="exception", error="disk"))
    result = store.result("words/a")
    assert [record.key for record in result.stages] == ["load", "a"]
    assert (result.reason, result.error, result.attempts) == ("exception", "disk", 2)
    assert result.folder == "trials/words/a/attempt-2"
    assert (result.stages[-1].evaluation.perplexity, result.stages[-1].sparsity.pruned) == (3.5, 0.5)
    assert (result.evaluation, result.sparsity) == (None, None), "they are not its last stage's"
    store.start_attempt(saved.id)
    final = [stage("load", cached=True), stage("a", 1, cached=True), stage("b", 2, perplexity=None)]
    store.finish_attempt(ended(3, "finished", *final))
    result = store.result("words/a")
    assert list(result.stages) == final
    assert (result.state, result.reason, result.error) == ("finished", "", "")


def test_a_trial_can_be_concluded_without_a_worker(store: Store) -> None:
    (saved,) = store.save_sweep(make_plan(make_trial("a", "load")))
    store.conclude(saved.id, "failed", reason="dependency", error="its teacher failed")
    result = store.result("words/a")
    assert (result.state, result.reason, result.attempts, result.folder) == ("failed", "dependency", 0, "")
    store.conclude(saved.id, "finished", reason="cache", stages=[stage("load", cached=True)])
    result = store.result("words/a")
    assert (result.state, result.reason, result.evaluation.perplexity) == ("finished", "", 3.5)


def test_a_stage_knows_who_computed_it_and_how_often(store: Store) -> None:
    a, b = store.save_sweep(make_plan(make_trial("a", "load a"), make_trial("b", "load b")))
    first = store.start_attempt(a.id)
    store.record_stage(stage("load"), first.id)
    store.record_stage(stage("load"), first.id)
    store.finish_attempt(ended(1, "finished", stage("load"), stage("a", 1)))
    store.start_attempt(b.id)
    store.finish_attempt(ended(1, "finished", stage("load", cached=True), stage("b", 1, cached=True), trial="b"))
    rows = {row.key: (row.computed_by, row.computations, row.uses, row.kind) for row in store.stages()}
    assert rows["load"] == ("words/a/attempt-1", 1, 1, "load")
    assert rows["a"] == ("words/a/attempt-1", 1, 0, "finetune")
    assert rows["b"] == (None, 0, 1, "finetune")
    again = store.start_attempt(b.id)
    store.record_stage(stage("load"), again.id)
    assert {row.key: row.computations for row in store.stages()}["load"] == 2


def test_a_stage_that_turns_out_to_be_cached_has_no_computer(store: Store) -> None:
    (saved,) = store.save_sweep(make_plan(make_trial("a", "load")))
    store.record_stage(stage("load"), store.start_attempt(saved.id).id)
    store.finish_attempt(ended(1, "finished", stage("load", cached=True)))
    (row,) = store.stages()
    assert (row.computed_by, row.uses) == (None, 1)


def test_points_come_back_by_stage_name_and_step(store: Store) -> None:
    attempt = run(store, make_trial("a", "load a"))
    given_ = [point(2, 0.5), point(1, 1.0), point(1, None, "kd"), point(1, 7.0, stage=1)]
    store.add_points(attempt, given_)
    assert store.points("words/a") == [given_[2], given_[1], given_[0], given_[3]]
    assert store.points("words/a", "loss") == [given_[1], given_[0], given_[3]]
    assert store.points("words/a", "loss", stage=1) == [given_[3]]
    assert store.points("words/a", "nothing") == []
    assert [(row.stage, row.name, row.points, row.last_step) for row in store.curves("words/a")] == [
        (0, "kd", 1, 1),
        (0, "loss", 2, 2),
        (1, "loss", 1, 1),
    ]


def test_a_point_told_twice_is_there_once_as_told_last(store: Store) -> None:
    attempt = run(store, make_trial("a"))
    store.add_points(attempt, [point(1, 1.0), point(1, 2.0)], offset=10)
    store.add_points(attempt, [point(1, 3.0)], offset=20)
    assert [one.value for one in store.points("words/a")] == [3.0]
    assert store.attempts("words/a")[0].offset == 20


def test_curves_of_a_shared_stage_belong_to_all_who_share_it(store: Store) -> None:
    a, b = store.save_sweep(make_plan(make_trial("a", "load ft a"), make_trial("b", "load ft b")))
    store.add_points(store.start_attempt(a.id).id, [point(1, 1.0, stage=1), point(1, 2.0, stage=2)])
    store.start_attempt(b.id)
    assert store.points(b.id) == [point(1, 1.0, stage=1)]


def test_curves_of_another_measurement_are_not_mixed_in(store: Store) -> None:
    a, b = store.save_sweep(make_plan(make_trial("a", "load"), make_trial("b", "load", evaluation_key="other")))
    store.add_points(
        store.start_attempt(a.id).id, [point(1, 1.0), point(1, 9.0, "perplexity"), point(1, 2.0, "eval_loss")]
    )
    store.start_attempt(b.id)
    assert [one.name for one in store.points(a.id)] == ["eval_loss", "loss", "perplexity"]
    assert [one.name for one in store.points(b.id)] == ["loss"]
    assert [row.name for row in store.curves(b.id)] == ["loss"]


def test_curves_of_an_earlier_configuration_are_gone(store: Store) -> None:
    attempt = run(store, make_trial("a", "load a"))
    store.add_points(attempt, [point(1, 1.0, stage=0), point(1, 2.0, stage=1)])
    store.save_sweep(make_plan(make_trial("a", "load b")))
    assert store.points("words/a") == [point(1, 1.0, stage=0)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 1), st.integers(0, 5), st.sampled_from(["loss", "kd"]), st.none() | st.floats(-9, 9)
            ),
            max_size=12,
        ),
        max_size=4,
    )
)
def test_later_attempts_override_earlier_ones(store: Store, attempts: list) -> None:
    name = f"t{next(COUNTER)}"
    (saved,) = store.save_sweep(make_plan(make_trial(name, f"{name}-load {name}-ft")))
    expected = {}
    written = []  # by attempt
    for told in attempts:
        started = store.start_attempt(saved.id)
        points = [point(step, value, curve, index) for index, step, curve, value in told]
        store.add_points(started.id, points[:5])
        store.add_points(started.id, points[5:])
        written.append({(one.stage, one.name, one.step): one for one in points})
        expected |= written[-1]
    assert store.points(saved.id) == [one for _, one in sorted(expected.items())]
    for curve in {one.name for one in expected.values()}:
        ends = store.curve_ends(curve)
        for index, stage in enumerate(saved.plan.stages):
            each = [
                sorted(
                    (step, one.value) for (place, name, step), one in told.items() if (place, name) == (index, curve)
                )
                for told in written
            ]
            known = [[value for _, value in values if value is not None] for values in each if values]
            assert ends.get(stage.key, []) == [
                ("measured", (*values[-1], min(finite, default=None), max(finite, default=None)))
                for values, finite in zip(filter(None, each), known, strict=True)
            ]


def test_a_broken_batch_leaves_nothing(store: Store) -> None:
    attempt = run(store, make_trial("a"))
    broken = point(2, 2.0).model_copy(update={"epoch": None})
    with pytest.raises(Exception, match=r"(?i)null"):
        store.add_points(attempt, [point(1, 1.0, "new"), broken], offset=99)
    assert store.points("words/a") == []
    assert store.attempts("words/a")[0].offset == 0
    store.add_points(attempt, [point(1, 1.0, "new")], offset=50)
    assert store.points("words/a") == [point(1, 1.0, "new")]


def test_a_sweep_runs_on_either_database(store: Store, tmp_path: Path) -> None:
    trials = make_trial("a", "load ft a"), make_trial("b", "load ft b", needs="a"), make_trial("c", "load c", fail="c")
    for _ in range(2):
        launcher = ForkLauncher(fake_worker.run, slots=2)
        outcome = run_sweep(make_plan(*trials), Root(tmp_path / "root"), store, launcher)
    assert outcome.unchanged == ("words/a", "words/b")
    assert {result.name: (result.state, result.attempts) for result in store.results("words")} == {
        "a": ("finished", 1),
        "b": ("finished", 1),
        "c": ("failed", 2),
    }
    assert {row.key: row.computations for row in store.stages()} == dict.fromkeys(["load", "ft", "a", "b"], 1)
    assert len(store.points("words/b", "loss")) == 3


def test_points_are_stored_fast(store: Store) -> None:
    attempt = run(store, make_trial("a", "load a"))
    points = [point(step, 1.0, f"curve{step % 20}", 1) for step in range(50_000)]
    started = time.process_time()
    for first in range(0, len(points), 1000):
        store.add_points(attempt, points[first : first + 1000], offset=first)
    seconds = time.process_time() - started
    assert len(store.points("words/a")) == 50_000
    assert seconds < 10, f"{50_000 / seconds:,.0f} points a second"


def test_thousands_of_trials_are_read_fast(store: Store) -> None:
    trials = [make_trial(f"t{index}", f"load ft p{index}") for index in range(2_000)]
    for saved in store.save_sweep(make_plan(*trials))[:200]:
        store.conclude(saved.id, "finished", reason="cache", stages=[stage("load"), stage(saved.plan.key, 1)])
    started = time.process_time()
    results = store.results("words")
    assert time.process_time() - started < 5
    assert sum(len(result.stages) for result in results) == 400


READS: dict[str, Callable[[Store], object]] = {
    "results": lambda store: store.results("words"),
    "result": lambda store: store.result("words/a"),
    "results_of": lambda store: store.results_of([1]),
    "points": lambda store: store.points(1),
    "curves": lambda store: store.curves(1),
    "series": lambda store: store.series(1, lambda stage, name: True),
    "held": lambda store: store.held("words"),
    "suggested": lambda store: store.suggested(make_plan().model_copy(update={"searches": (SEARCH,)})),
    "keep_suggested": lambda store: store.keep_suggested("words", "s", ()),
    "start_attempt": lambda store: store.start_attempt(1),
}
SEARCH = SearchPlan(name="s", index=0, order=0, spec=SearchSpec(space={"a": {"low": 0, "high": 1}}, n_trials=2))


def rewrite(store: Store, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the plan that is stored of the only trial."""
    with store._writer.begin() as connection:
        tree = json.loads(connection.execute(select(trial.c.plan)).scalar_one())
        change(tree)
        connection.execute(update(trial).values(plan=json.dumps(tree)))


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_plan_of_another_version_is_read_and_one_that_cannot_be_is_named(
    read: Callable[[Store], object], store: Store
) -> None:
    one = make_trial("a", "load tuned").model_copy(update={"search": "s", "number": 1})
    store.save_sweep(make_plan(one))
    rewrite(store, lambda tree: tree["stages"][1].update({"of a later version": [2]}))
    read(store)
    rewrite(store, lambda tree: tree.pop("evaluate"))
    with pytest.raises(
        StoreError, match=r"plan of words/a cannot be read .*: evaluate is missing\. Run its spec again"
    ):
        read(store)
    store.save_sweep(make_plan(one))
    read(store)
