import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.recipes.distillation import distillation_updates
from prunegpt.recipes.load import meaning_of_text
from prunegpt.recipes.pruning import Pruning
from prunegpt.recipes.simulate import SimulationError, sparsity_at, updates_of
from prunegpt.registry import SCHEDULES
from prunegpt.spec.schedules import Clock, epoch_of, interpolate


def pruning(schedule: str = "cubic", **fields: object) -> Pruning:
    given_fields = {"start": 1.0, "end": 5.0, "every": 0.01, "final": 0.8, "dialect": "legacy", **fields}
    dialect = given_fields.pop("dialect")
    return Pruning("X", 1, "", dialect, ("a",), schedule=schedule, **given_fields)  # type: ignore[arg-type]


def naive(start: float, end: float, every: float, steps: int) -> list[int]:
    """SparseML's rule as it is written, step by step."""
    found: list[int] = []
    last = math.nan
    step = 0
    while True:
        epoch = step // steps + (step % steps) / steps
        if epoch >= end:
            return [*found, step]
        started = bool(found)
        if (not started and epoch >= start) or (started and epoch > start and (every == -1 or epoch >= last + every)):
            found.append(step)
            last = epoch
        step += 1


clocks = st.tuples(
    st.floats(-1, 4), st.floats(0, 3), st.one_of(st.just(-1.0), st.floats(0.001, 3)), st.integers(1, 300)
)


@settings(deadline=None)
@given(clocks)
def test_jumping_finds_the_same_steps_as_walking(clock: tuple[float, float, float, int]) -> None:
    start, length, every, steps = clock
    start = start if start >= 0 else -1.0
    end = max(start, 0.0) + length
    expected = naive(start, end, every, steps)
    assert list(Clock.sparseml(start, end, every, steps).updates) == expected  # the trainer's own


def test_a_simulation_is_bounded() -> None:
    with pytest.raises(SimulationError, match="2,000,000 times"):
        updates_of(pruning(start=0.0, end=1000.0, every=-1.0), 100_000)
    with pytest.raises(SimulationError, match="1 or more optimizer steps, but got 0"):
        updates_of(pruning(), 0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0, 0.1, 0.2, 0.4, 0.6, 0.8]),
        ("cubic", [0, 0.264063, 0.4625, 0.7, 0.7875, 0.8]),
        ("inverse_cubic", [0, 0.034828, 0.073152, 0.16504, 0.296032, 0.8]),
    ],
)
def test_curves(schedule: str, expected: list[float]) -> None:
    """The values of SparseML's interpolation from 0 to 0.8 between epochs 1 and 5."""
    found = [sparsity_at(pruning(schedule), epoch) for epoch in (1, 1.5, 2, 3, 4, 5)]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cubic", "inverse_cubic"])
@given(x=st.floats(-0.5, 1.5), initial=st.floats(0, 0.9), final=st.floats(0, 0.99))
def test_curves_are_those_that_train(schedule: str, x: float, initial: float, final: float) -> None:
    ours = SCHEDULES.load(schedule)
    item = pruning(schedule, initial=initial, final=final)
    assert sparsity_at(item, 1 + 4 * x) == pytest.approx(interpolate(ours(x), final, initial), abs=1e-9)


def test_inverse_cubic_after_its_end_is_real() -> None:
    assert sparsity_at(pruning("inverse_cubic"), 5.2) == 0.8


def test_dense_and_pruned_phases_alternate() -> None:
    """Phase n is floor((e - start) / frequency): even ones dense, but for the last."""
    item = pruning("acdc", start=0.0, end=8.0, every=2.0)
    assert [sparsity_at(item, epoch) for epoch in (0, 1.9, 2, 3.9, 4, 6, 8)] == [0, 0, 0.8, 0.8, 0, 0.8, 0.8]
    odd = pruning("acdc", start=0.0, end=6.0, every=2.0)
    assert [sparsity_at(odd, epoch) for epoch in (0, 2, 4, 6)] == [0, 0.8, 0.8, 0.8]


def test_the_session_dialect_updates_every_step() -> None:
    item = pruning("cubic", dialect="session", start=1.0, end=2.0, every=0.5)
    assert [update.step for update in updates_of(item, 10)] == list(range(10, 21))


def session_curve(schedule: str, arguments: str = "{}") -> list[float]:
    meaning = meaning_of_text(
        "x_stage: {run_type: train, m_modifiers: {MagnitudePruningModifier: {init_sparsity: 0.1, final_sparsity: 0.7, "
        f"start: 0, end: 4, update_scheduler: '{schedule}', scheduler_args: {arguments}}}}}}}"
    )
    return [sparsity_at(meaning.stages[0].prunings[0], epoch) for epoch in (0, 1, 2, 4)]


@pytest.mark.parametrize(
    ("schedule", "arguments", "expected"),
    [
        ("linear", "{}", [0.1, 0.25, 0.4, 0.7]),
        ("polynomial", "{exponent: 2}", [0.1, 0.1375, 0.25, 0.7]),
        ("polynomial_decay", "{}", [1.3, 1.0375, 0.85, 0.7]),  # the wrong sign of even exponents
        ("polynomial_decay", "{exponent: 3}", [0.1, 0.446875, 0.625, 0.7]),
        ("cubic", "{}", [0.1, 0.446875, 0.625, 0.7]),
        ("multi_step", "{steps: [[2, 0.5], [1, 0.3]]}", [0.1, 0.3, 0.5, 0.5]),
        ("calc(init_sparsity + k * index / (end - start))", "{k: 0.6}", [0.1, 0.25, 0.4, 0.7]),
        ("calc(min(final_sparsity, index))", "{}", [0, 0.7, 0.7, 0.7]),
    ],
)
def test_schedules_of_the_session_dialect(schedule: str, arguments: str, expected: list[float]) -> None:
    assert session_curve(schedule, arguments) == pytest.approx(expected)


def test_calc_runs_no_code() -> None:
    with pytest.raises(ValueError, match="may be called, but it calls __import__"):
        session_curve('calc(__import__("os"))')


def test_updates_after_the_training_are_left_out() -> None:
    item = pruning()
    assert updates_of(item, 100, 5)[-1].step < 500
    assert updates_of(item, 100, 6)[-1] == updates_of(item, 100)[-1]
    assert updates_of(item, 100, 6)[-1].sparsity == 0.8


@settings(deadline=None)
@given(
    start=st.floats(0, 2),
    length=st.floats(0.5, 3),
    every=st.floats(0.01, 1),
    steps=st.integers(2, 60),
    schedule=st.sampled_from(["linear", "cubic", "inverse_cubic", "constant", "acdc"]),
)
def test_our_own_clock_is_that_which_trains(
    start: float, length: float, every: float, steps: int, schedule: str
) -> None:
    clock = Clock.regular(round(start * steps), round((start + length) * steps), max(1, round(every * steps)))
    if schedule == "acdc" and clock.phases < 2:
        return
    item = pruning(schedule, dialect="own", start=start, end=start + length, every=every, final=0.6, initial=0.1)
    found = updates_of(item, steps, 100)
    assert tuple(update.step for update in found) == clock.updates
    for update in found:
        assert update.sparsity == pytest.approx(interpolate(clock.share(schedule, update.step), 0.6, 0.1))


def test_units_of_our_own_schedules() -> None:
    steps = pruning(dialect="own", unit="steps", start=10, end=30, every=10)
    assert [update.step for update in updates_of(steps, 7)] == [10, 20, 30]
    shares = pruning(dialect="own", unit="fraction", start=0.1, end=0.3, every=0.1)
    assert [update.step for update in updates_of(shares, 10, 10)] == [10, 20, 30]
    half = pruning(dialect="own", start=1, end=None, every=1)
    assert [update.step for update in updates_of(half, 10, 6)] == [10, 20, 30]
    with pytest.raises(SimulationError, match="needs the number of epochs"):
        updates_of(half, 10)


def test_one_shot_pruning_is_one_update() -> None:
    assert [(item.step, item.sparsity) for item in updates_of(pruning(one_shot=True), 10)] == [(0, 0.8)]


def test_the_clock_reads_epochs() -> None:
    assert [epoch_of(step, 4) for step in (0, 1, 4, 7)] == [0, 0.25, 1, 1.75]


@pytest.mark.parametrize(
    ("update", "steps", "count"),
    [
        (0.01, 2318, 0),  # as computed for SparseML's rule: never
        (0.5, 4, 9),
        (1.0, 100, 4),
        (-1.0, 10, 49),
    ],
)
def test_how_often_a_distillation_fires(update: float, steps: int, count: int) -> None:
    assert distillation_updates(update, steps, 5) == count
