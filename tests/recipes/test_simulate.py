"""When masks change under a converted recipe: SparseML's own rule, computed here as it is written."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.errors import PruningError
from prunegpt.recipes.describe import updates_of
from prunegpt.recipes.load import meaning_of_text
from prunegpt.spec.schedules import Clock, epoch_of
from prunegpt.spec.schema import GradualSpec


def spec(**fields: object) -> GradualSpec:
    return GradualSpec.model_validate({"start": 1.0, "end": 5.0, "every": 0.01, "sparsity": 0.8, **fields})


def steps_of(section: GradualSpec, per_epoch: int, epochs: float | None = None) -> list[int]:
    return [step for step, _ in updates_of(section, 0.8, per_epoch, epochs)]


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
def test_a_converted_recipe_updates_at_the_steps_of_sparseml(clock: tuple[float, float, float, int]) -> None:
    start, length, every, steps = clock
    start = start if start >= 0 else -1.0
    end = max(start, 0.0) + length
    expected = naive(start, end, every, steps)
    assert list(Clock.sparseml(start, end, every, steps).updates) == expected
    text = (
        f"modifiers:\n  - !GMPruningModifier {{params: [a], init_sparsity: 0.1, final_sparsity: 0.8, "
        f"start_epoch: {start!r}, end_epoch: {end!r}, update_frequency: {every!r}}}"
    )
    section = GradualSpec.model_validate(meaning_of_text(text).stages[0].prune)
    assert section.end is not None  # a drifting clock needs one
    found = updates_of(section, 0.8, steps, None)
    assert [step for step, _ in found] == expected
    assert found[-1][1] == 0.8


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
    found = dict(updates_of(spec(schedule=schedule, every=0.5), 0.8, 2, None))
    assert [found[step] for step in (2, 3, 4, 6, 8, 10)] == pytest.approx(expected, abs=1e-6)


def test_dense_and_pruned_phases_alternate() -> None:
    section = spec(schedule="acdc", start=0.0, end=8.0, every=2.0, clock="sparseml")
    assert updates_of(section, 0.8, 1, 10) == [(0, 0.0), (2, 0.8), (4, 0.0), (6, 0.8), (8, 0.8)]


def test_what_does_not_fit_the_training_is_refused() -> None:
    with pytest.raises(PruningError, match="must end before training does"):
        updates_of(spec(), 0.8, 100, 5)
    with pytest.raises(PruningError, match="2,000,000 times"):
        updates_of(spec(start=0.0, end=1000.0, every=1e-6), 0.8, 100_000, None)


def test_units_of_our_own_schedules() -> None:
    assert steps_of(spec(unit="steps", start=10, end=30, every=10), 7) == [10, 20, 30]
    assert steps_of(spec(unit="fraction", start=0.1, end=0.3, every=0.1), 10, 10) == [10, 20, 30]
    half = spec(start=1, end=None, every=1)
    assert steps_of(half, 10, 6) == [10, 20, 30]
    with pytest.raises(PruningError, match="needs the number of epochs"):
        updates_of(half, 0.8, 10, None)


def test_the_clock_reads_epochs() -> None:
    assert [epoch_of(step, 4) for step in (0, 1, 4, 7)] == [0, 0.25, 1, 1.75]
