"""The scheduler, without a disk: random sweeps are played through, with slots that finish and fail in random order."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.sweep.scheduler import Published, StageScheduler, WorkUnit, name_of, select, units_of
from tests.support.sweep_plans import make_trial


class Memory(Published):
    """What is published, in memory; `look` sees what was put there, `seen` only what was looked at, as on disk."""

    def __init__(self, there: set[WorkUnit] | None = None) -> None:
        super().__init__(Root.find("nowhere"))
        self.there = there or set()

    def _is_there(self, unit: WorkUnit) -> bool:
        return unit in self.there


@st.composite
def sweeps(draw: Any) -> list[TrialPlan]:
    """Trials over a tree of stages; a trial may need the last stage of one that was drawn before it."""
    chains: list[str] = []
    trials = []
    for index in range(draw(st.integers(1, 8))):
        base = draw(st.sampled_from(["", *chains]))
        parts = base.split()[: draw(st.integers(0, 4))]
        parts += [f"s{index}.{extra}" for extra in range(draw(st.integers(0 if parts else 1, 3)))]
        needs = draw(st.sampled_from(["", *(chain.split()[-1] for chain in chains)])) if chains else ""
        needs = "" if needs in parts else needs
        key = draw(st.sampled_from(["e", "e2"]))
        trials.append(make_trial(f"t{index}", " ".join(parts), needs=needs, evaluation_key=key, order=index))
        chains.append(" ".join(parts))
    return draw(st.permutations(trials))


def play(trials: list[TrialPlan], published: Memory, slots: int, draw: random.Random, fail: float) -> dict[str, str]:
    """Plays a sweep through; asserts at every step that nothing is done twice or too early."""
    scheduler = StageScheduler(trials, published)
    ended: dict[str, str] = {}
    done: list[WorkUnit] = []
    for _ in range(10_000):
        for trial in scheduler.complete():
            scheduler.end(trial)
            ended[name_of(trial)] = "complete"
        if blocked := scheduler.blocked():
            for one in blocked:
                assert WorkUnit(one.need) not in published.there
                scheduler.end(one.trial)
                ended[name_of(one.trial)] = "blocked"
            continue
        while len(scheduler.running) < slots and (trial := scheduler.next()) is not None:
            assert all(WorkUnit(need) in published.there for need in trial.needs)
            scheduler.start(trial)
        current = [unit for name in scheduler.running if (unit := scheduler.current(name, look=True)) is not None]
        assert len(current) == len(set(current)), "two trials do the same unit"
        if not scheduler.running:
            break
        trial = scheduler.running[draw.choice(sorted(scheduler.running))]
        unit = scheduler.current(name_of(trial), look=True)
        if unit is None:
            scheduler.end(trial)
            ended[name_of(trial)] = "finished"
        elif draw.random() < fail:
            if draw.random() < 0.5:
                scheduler.requeue(trial)
            else:
                scheduler.end(trial)
                ended[name_of(trial)] = "failed"
        else:
            done.append(unit)
            published.there.add(unit)
    assert len(done) == len(set(done))
    for name, trial in scheduler.waiting.items():  # what a failure has left in a circle: the coordinator fails these
        assert any(WorkUnit(need) not in published.there for need in trial.needs)
        ended[name] = "stuck"
    return ended


@settings(max_examples=150, deadline=None)
@given(sweeps(), st.integers(1, 4), st.integers(0, 999))
def test_every_trial_finishes_and_every_unit_is_done_once(trials: list, slots: int, seed: int) -> None:
    published = Memory()
    ended = play(trials, published, slots, random.Random(seed), fail=0.0)
    assert set(ended) == {name_of(trial) for trial in trials}
    assert set(ended.values()) <= {"finished", "complete"}
    assert published.there == {unit for trial in trials for unit in units_of(trial)}


@settings(max_examples=150, deadline=None)
@given(sweeps(), st.integers(1, 4), st.integers(0, 999))
def test_failures_never_leave_a_trial_waiting(trials: list, slots: int, seed: int) -> None:
    published = Memory()
    ended = play(trials, published, slots, random.Random(seed), fail=0.2)
    assert set(ended) == {name_of(trial) for trial in trials}
    if "failed" not in ended.values():
        assert set(ended.values()) <= {"finished", "complete"}
    for trial in trials:
        if ended[name_of(trial)] in ("finished", "complete"):
            assert set(units_of(trial)) <= published.there


@settings(max_examples=60, deadline=None)
@given(sweeps(), st.integers(0, 999))
def test_what_is_published_already_is_not_done_again(trials: list, seed: int) -> None:
    first = Memory()
    play(trials, first, 2, random.Random(seed), fail=0.4)
    assert set(play(trials, Memory(first.there), 2, random.Random(seed), fail=0.0).values()) <= {"finished", "complete"}


def test_one_slot_keeps_the_order_where_it_may() -> None:
    trials = [
        make_trial("b", "x b"),
        make_trial("kd", "x kd", needs="a"),
        make_trial("a", "x a"),
        make_trial("c", "x c"),
    ]
    published = Memory()
    scheduler = StageScheduler(trials, published)
    order = []
    while (trial := scheduler.next()) is not None:
        order.append(trial.name)
        scheduler.start(trial)
        published.there |= set(units_of(trial))
        scheduler.current(name_of(trial), look=True)
        scheduler.end(trial)
    assert order == ["b", "a", "kd", "c"]


def test_units_are_stages_and_their_measurements() -> None:
    assert units_of(make_trial("t", "a b", evaluation_key="e")) == (
        WorkUnit("a"),
        WorkUnit("a", "e"),
        WorkUnit("b"),
        WorkUnit("b", "e"),
    )
    assert units_of(make_trial("t", "a b", skip=True)) == (WorkUnit("a"), WorkUnit("b"))


def test_the_disk_is_asked(tmp_path: Any) -> None:
    root = Root(tmp_path)
    published = Published(root)
    assert not published.look(WorkUnit("k"))
    root.stage("k").mkdir(parents=True)
    assert not published.look(WorkUnit("k"))
    (root.stage("k") / "stage.json").touch()
    assert not published.seen(WorkUnit("k"))
    assert published.look(WorkUnit("k"))
    assert published.seen(WorkUnit("k"))
    assert not published.look(WorkUnit("k", "e"))
    root.evaluation("k", "e").mkdir(parents=True)
    (root.evaluation("k", "e") / "evaluation.json").touch()
    assert published.look(WorkUnit("k", "e"))


TRIALS = [
    make_trial("long", "big teach more", order=0),
    make_trial("teacher", "big teach", needs="master", order=1),
    make_trial("master", "huge master", order=2),
    make_trial("student", "load kd", needs="teach", order=3),
    make_trial("other", "load other", order=4),
    make_trial("own", "big teach own", needs="teach", order=5),
]


@pytest.mark.parametrize(
    ("wanted", "there", "barred", "selected"),
    [
        (["student"], [], [], ["teacher", "master", "student"]),
        (["student"], ["teach"], [], ["student"]),
        (["student"], ["master"], [], ["teacher", "student"]),
        (["student", "long"], [], [], ["long", "student"]),
        (["student"], [], ["words/teacher"], ["long", "student"]),
        (["student"], [], ["words/teacher", "words/long"], ["student"]),
        (["student"], ["load", "kd"], [], ["student"]),
        (["other"], [], [], ["other"]),
        (["own"], [], [], ["teacher", "master", "own"]),
        (["own", "student"], ["master"], [], ["teacher", "student", "own"]),
        ([], [], [], []),
    ],
)
def test_the_trials_that_teachers_need_are_selected(wanted: list, there: list, barred: list, selected: list) -> None:
    published = Memory({WorkUnit(key) for key in there} | {WorkUnit(key, "measured") for key in there})
    found = select(TRIALS, [trial for trial in TRIALS if trial.name in wanted], published, barred)
    assert [trial.name for trial in found] == selected
