import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.errors import PruningError
from prunegpt.registry import SCHEDULES
from prunegpt.spec.schedules import (
    Clock,
    acdc,
    clock_of,
    clock_problem,
    constant,
    cubic,
    interpolate,
    inverse_cubic,
    linear,
)

GROWING = [linear, cubic, inverse_cubic, constant]

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
    return Clock.regular(start, start + draw(st.integers(0, 200)), draw(st.integers(1, 60)))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_published_curves(name: str) -> None:
    schedule = SCHEDULES.load(name)
    found = [interpolate(schedule((epoch - 1) / 4), 0.8) for epoch in EPOCHS]
    assert found == pytest.approx(GOLDEN[name], abs=5e-7)


@pytest.mark.parametrize("schedule", [linear, cubic, inverse_cubic])
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
    targets = [interpolate(clock.share(name, update), final, initial) for update in clock.updates]
    assert targets[0] == (initial if clock.end > clock.start else final)
    assert targets[-1] == final
    assert targets == sorted(targets, reverse=final < initial)


@given(clocks())
@settings(deadline=None)
def test_updates_are_a_regular_grid_with_both_ends(clock: Clock) -> None:
    updates = clock.updates
    every = updates[1] - updates[0] if clock.phases else 1
    assert {later - earlier for earlier, later in pairwise(updates[:-1])} <= {every}
    assert clock.phases == 0 or 0 < updates[-1] - updates[-2] <= every
    for step in range(clock.end + 5):
        assert clock.held(step) == max((update for update in updates if update <= step), default=None)


EPOCHS_OF_37 = {"unit": "epochs", "grid": "regular", "steps": 37 * 10, "per_epoch": 37}


def test_times_become_steps_once() -> None:
    regular = {"unit": "epochs", "grid": "regular"}
    assert clock_of(start=1, end=5, every=0.01, **regular, steps=23180, per_epoch=2318) == Clock.regular(
        2318, 11590, 23
    )
    assert clock_of(start=0.5, end=1.5, every=0.001, **EPOCHS_OF_37) == Clock.regular(18, 56, 1)
    assert len(clock_of(start=1, end=5, every=0.01, **regular, steps=1000, per_epoch=100).updates) == 401
    assert clock_of(start=0, end=None, every=0.1, **EPOCHS_OF_37) == Clock.regular(0, 185, 4)
    assert clock_of(
        start=0.1, end=0.5, every=0.2, unit="fraction", grid="regular", steps=100, per_epoch=7
    ) == Clock.regular(10, 50, 20)
    drifting = clock_of(start=1, end=5, every=0.01, unit="epochs", grid="sparseml", steps=23180, per_epoch=2318)
    assert len(drifting.updates) == 388


BAD_TIMES = {
    "sparseml in steps": ({"grid": "sparseml", "unit": "steps", "end": 5.0}, "counts in epochs; unit is steps"),
    "sparseml without an end": ({"grid": "sparseml", "end": None}, "needs the epoch of its last update"),
    "an end after the training": ({"end": 10.0}, "must end before training does"),
    "a start after half-way": ({"start": 6.0, "end": None}, "must start before it ends"),
}
assert BAD_TIMES


@pytest.mark.parametrize(("change", "message"), BAD_TIMES.values(), ids=BAD_TIMES)
def test_a_clock_that_cannot_run_is_known_before_and_refused_when_counted(
    change: dict[str, object], message: str
) -> None:
    times = {"start": 0.0, "end": 5.0, "unit": "epochs", "grid": "regular", **change}
    told = clock_problem(**times, limit=10.0)
    assert told is not None
    assert message in told
    with pytest.raises(PruningError, match=message):
        clock_of(**times, every=0.1, steps=370, per_epoch=37)


@given(
    start=st.floats(0, 12),
    end=st.one_of(st.none(), st.floats(0, 12)),
    every=st.floats(0.001, 5),
    unit=st.sampled_from(["epochs", "fraction"]),
    per_epoch=st.integers(1, 50),
    epochs=st.integers(1, 10),
)
@settings(deadline=None)
def test_every_clock_lies_within_its_training(
    start: float, end: float | None, every: float, unit: str, per_epoch: int, epochs: int
) -> None:
    try:
        clock = clock_of(
            start=start, end=end, every=every, unit=unit, grid="regular", steps=per_epoch * epochs, per_epoch=per_epoch
        )
    except PruningError:
        return
    assert 0 <= clock.start <= clock.end < per_epoch * epochs
    if end is not None:
        assert abs(clock.end - end * (per_epoch if unit == "epochs" else per_epoch * epochs)) <= 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clock.regular(5, 4), "start at 0 or later and end no earlier than it starts, got steps 5 to 4"),
        (lambda: Clock.regular(-1, 4), "got steps -1 to 4"),
        (lambda: Clock.regular(0, 4, 0), "every 1 or more optimizer steps, got 0"),
        (lambda: Clock((3, 2)), "in ascending order, got .3, 2."),
        (lambda: Clock(()), "before one or more optimizer steps"),
        (lambda: Clock.regular(0, 10**8), "2,000,000 times; this clock has more"),
        (lambda: Clock.sparseml(0, 1000, -1, 100_000), "2,000,000 times; this clock has more"),
        (lambda: Clock.sparseml(0, 1, 1, 0), "1 or more optimizer steps, got 0"),
        (lambda: Clock.regular(0, 10, 10).share("acdc", 0), "needs a dense and a compressed phase, .* got 1 phase"),
        (lambda: Clock.regular(0, 10).share("cubik", 0), "unknown schedule 'cubik'. Did you mean 'cubic'"),
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
    levels = [clock.share("acdc", update) for update in clock.updates]
    for index, level in enumerate(levels[:-2]):
        assert level == index % 2
    assert levels[-2:] == [1.0, 1.0]


def test_acdc_of_four_phases() -> None:
    assert [acdc(phase, phases=4) for phase in range(5)] == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(("steps_per_epoch", "count"), [(2318, 388), (100, 382), (1000, 401), (37, 149)])
def test_sparseml_updates_drift_by_as_much_as_was_counted(steps_per_epoch: int, count: int) -> None:
    clock = Clock.sparseml(1, 5, 0.01, steps_per_epoch)
    assert len(clock.updates) == count
    assert (clock.start, clock.end) == (steps_per_epoch, 5 * steps_per_epoch)


def test_sparseml_updates_every_step_and_from_the_beginning() -> None:
    assert Clock.sparseml(1, 2, -1, 4).updates == (4, 5, 6, 7, 8)
    assert Clock.sparseml(-1, 1, 0.5, 4).updates == (0, 2, 4)


def test_interpolation_stays_between_its_ends() -> None:
    assert interpolate(math.nextafter(1.0, 0.0), 0.9, 0.1) <= 0.9
    assert interpolate(0.5, 0.2, 0.8) == pytest.approx(0.5)
