import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.errors import PruningError
from prunegpt.pruning.schedules import (
    Clock,
    acdc,
    constant,
    cubic,
    interpolate,
    inverse_cubic,
    linear,
    load_schedule,
    one_shot,
    sparseml_updates,
)
from prunegpt.registry import SCHEDULES

GROWING = [linear, cubic, inverse_cubic, one_shot, constant]

# Sparsity from 0 to 0.8 between epochs 1 and 5, at these epochs, by the formulas of SparseML recipes.
EPOCHS = [1, 1.5, 2, 3, 4, 5]
GOLDEN = {
    "linear": [0, 0.1, 0.2, 0.4, 0.6, 0.8],
    "cubic": [0, 0.264063, 0.4625, 0.7, 0.7875, 0.8],
    "inverse_cubic": [0, 0.034828, 0.073152, 0.16504, 0.296032, 0.8],
}


@st.composite
def clocks(draw: st.DrawFn) -> Clock:
    start = draw(st.integers(0, 50))
    return Clock(start, start + draw(st.integers(0, 200)), draw(st.integers(1, 60)))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_published_curves(name: str) -> None:
    schedule = SCHEDULES.load(name)
    found = [interpolate(schedule((epoch - 1) / 4), 0.8) for epoch in EPOCHS]
    assert found == pytest.approx(GOLDEN[name], abs=5e-7)


@pytest.mark.parametrize("schedule", [linear, cubic, inverse_cubic, one_shot])
def test_ends_are_exact_and_progress_is_clamped(schedule: object) -> None:
    assert callable(schedule)
    assert [schedule(x) for x in (-3.0, 0.0)] == [0.0, 0.0]
    assert [schedule(x) for x in (1.0, 1.0001, 7.0)] == [1.0, 1.0, 1.0]


def test_constant_is_one_shot_at_the_start() -> None:
    assert [constant(x) for x in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", GROWING)
@given(st.floats(-1, 2), st.floats(-1, 2))
def test_schedules_never_fall(schedule: object, one: float, other: float) -> None:
    assert callable(schedule)
    assert 0.0 <= schedule(min(one, other)) <= schedule(max(one, other)) <= 1.0


@pytest.mark.parametrize(("initial", "final"), [(0.0, 0.9), (0.3, 0.9), (0.5, 0.5), (0.9, 0.2)])
@pytest.mark.parametrize("name", ["linear", "cubic", "inverse_cubic"])
@given(clock=clocks())
@settings(deadline=None)
def test_targets_start_and_end_exactly_and_move_one_way(name: str, initial: float, final: float, clock: Clock) -> None:
    schedule = load_schedule(name, clock)
    targets = [
        clock.target(step, schedule=schedule, final=final, initial=initial)
        for step in range(clock.start, clock.end + 3)
    ]
    assert targets[0] == (initial if clock.end > clock.start else final)
    assert targets[-3:] == [final] * 3
    assert targets == sorted(targets, reverse=final < initial)
    assert clock.start == 0 or clock.target(clock.start - 1, schedule=schedule, final=final, initial=initial) == 0.0


@given(clocks())
@settings(deadline=None)
def test_updates_are_a_regular_grid_with_both_ends(clock: Clock) -> None:
    updates = clock.updates()
    assert updates[0] == clock.start
    assert updates[-1] == clock.end
    assert {later - earlier for earlier, later in pairwise(updates[:-1])} <= {clock.every}
    assert len(updates) == 1 or 0 < updates[-1] - updates[-2] <= clock.every
    assert len(updates) == clock.phases + 1
    for step in range(clock.end + 5):
        assert clock.held(step) == max((update for update in updates if update <= step), default=None)


def test_epochs_become_steps_once() -> None:
    assert Clock.from_epochs(1, 5, 0.01, 2318) == Clock(2318, 11590, 23)
    assert Clock.from_epochs(0.5, 1.5, 0.001, 37) == Clock(18, 56, 1)
    assert len(Clock.from_epochs(1, 5, 0.01, 100).updates()) == 401


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clock(5, 4), "start at 0 or later and end no earlier than it starts, but got steps 5 to 4"),
        (lambda: Clock(-1, 4), "but got steps -1 to 4"),
        (lambda: Clock(0, 4, 0), "every 1 or more optimizer steps, but got 0"),
        (lambda: Clock.from_epochs(0, 1, 1, 0), "1 or more optimizer steps, but got 0"),
        (lambda: load_schedule("acdc", Clock(0, 10, 10)), "needs a dense and a compressed phase, .* but got 1 phase"),
        (lambda: load_schedule("cubik", Clock(0, 10)), "unknown schedule 'cubik'. Did you mean 'cubic'"),
    ],
)
def test_what_is_no_schedule_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(Exception, match=message) as caught:
        make()
    assert type(caught.value).__module__ == PruningError.__module__


@given(clocks())
@settings(deadline=None)
def test_acdc_alternates_from_dense_and_ends_compressed(clock: Clock) -> None:
    if clock.phases < 2:
        return
    schedule = load_schedule("acdc", clock)
    levels = [clock.target(update, schedule=schedule, final=0.9) for update in clock.updates()]
    for index, level in enumerate(levels[:-2]):
        assert level == (0.9 if index % 2 else 0.0)
    assert levels[-2:] == [0.9, 0.9]


def test_acdc_of_four_phases() -> None:
    assert [acdc(x, phases=4) for x in (0.0, 0.24, 0.25, 0.49, 0.5, 0.74, 0.75, 1.0)] == [0, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(("steps_per_epoch", "count"), [(2318, 388), (100, 382), (1000, 401), (37, 149)])
def test_sparseml_updates_drift_by_as_much_as_was_counted(steps_per_epoch: int, count: int) -> None:
    updates = sparseml_updates(1, 5, 0.01, steps_per_epoch)
    assert len(updates) == count
    assert updates[0] == steps_per_epoch
    assert updates[-1] == 5 * steps_per_epoch
    assert updates == sorted(set(updates))


def test_sparseml_updates_every_step_and_from_the_beginning() -> None:
    assert sparseml_updates(1, 2, -1, 4) == [4, 5, 6, 7, 8]
    assert sparseml_updates(-1, 1, 0.5, 4) == [0, 2, 4]
    with pytest.raises(PruningError, match="1 or more optimizer steps, but got 0"):
        sparseml_updates(1, 2, -1, 0)


def test_interpolation_stays_between_its_ends() -> None:
    assert interpolate(math.nextafter(1.0, 0.0), 0.9, 0.1) <= 0.9
    assert interpolate(0.5, 0.2, 0.8) == pytest.approx(0.5)
