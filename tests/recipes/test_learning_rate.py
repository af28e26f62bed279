import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.optimization import get_scheduler

from prunegpt.recipes.learning_rate import CurveError, LearningRateCurve, Segment, as_arguments
from prunegpt.recipes.load import meaning_of_text
from prunegpt.recipes.meaning import StageMeaning
from prunegpt.recipes.source import RecipeError


def stage(*modifiers: str, epochs: int = 10) -> StageMeaning:
    lines = [f"EpochRangeModifier {{end_epoch: {epochs}}}", *modifiers]
    return meaning_of_text("modifiers:\n" + "\n".join(f"  - !{line}" for line in lines)).stages[0]


def function(shape: str, start: float, end: float, first: float, last: float, more: str = "") -> str:
    return (
        f"LearningRateFunctionModifier {{lr_func: {shape}, start_epoch: {start}, end_epoch: {end}, "
        f"init_lr: {first}, final_lr: {last}{more}}}"
    )


def rates(found: StageMeaning, steps_per_epoch: int, steps: int) -> list[float | None]:
    assert found.learning_rate is not None
    return [found.learning_rate.learning_rate_at(step, steps_per_epoch=steps_per_epoch) for step in range(steps)]


def transformers_rates(train: dict[str, Any], steps: int) -> list[float]:
    """The learning rates of the scheduler that Trainer would build."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train["learning_rate"])
    share = train.get("warmup_steps", 0)
    warmup = math.ceil(steps * share) if share < 1 else int(share)  # TrainingArguments.get_warmup_steps
    scheduler = get_scheduler(
        train["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=train.get("lr_scheduler_kwargs"),
    )
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 30])
@pytest.mark.parametrize(
    ("modifiers", "kind"),
    [
        (["SetLearningRateModifier {learning_rate: 0.01}"], "constant"),
        ([function("linear", 0, 10, 0.01, 0)], "linear"),
        ([function("linear", -1, 10, 0.01, 0)], "linear"),
        ([function("linear", 0, 10, 0.01, 0.002)], "polynomial"),
        ([function("cosine", 0, 10, 0.01, 0)], "cosine"),
        ([function("cosine", 0, 10, 0.01, 0.001)], "cosine_with_min_lr"),
        ([function("linear", 0, 10, 0.01, 0.01)], "constant"),
        ([function("linear", 0, 1, 0, 0.01), function("linear", 1, 10, 0.01, 0)], "linear"),
        ([function("linear", 0, 3, 0, 0.01), function("cosine", 3, 10, 0.01, 0)], "cosine"),
        ([function("linear", 0, 3, 0, 0.01), function("cosine", 3, 10, 0.01, 0.002)], "cosine_with_min_lr"),
        ([function("linear", 0, 3, 0, 0.01), function("linear", 3, 10, 0.01, 0.002)], "polynomial"),
        (
            [function("linear", 0, 1, 0, 0.01), "SetLearningRateModifier {start_epoch: 1, learning_rate: 0.01}"],
            "constant_with_warmup",
        ),
    ],
)
def test_a_scheduler_of_transformers_gives_the_same_rates(
    modifiers: list[str], kind: str, steps_per_epoch: int
) -> None:
    found = stage(*modifiers)
    assert found.train["lr_scheduler_type"] == kind
    assert not found.follow_curve
    steps = 10 * steps_per_epoch
    assert rates(found, steps_per_epoch, steps) == pytest.approx(
        transformers_rates(dict(found.train), steps), abs=1e-12
    )


@pytest.mark.parametrize(
    "modifiers",
    [
        [function("linear", 0, 8, 0.01, 0)],  # ends before training
        [function("linear", 2, 10, 0.01, 0)],  # the optimizer's own rate before it
        [function("linear", 0, 10, 0.001, 0.01)],  # rises
        [function("linear", 0, 1, 0.001, 0.01), function("linear", 1, 10, 0.01, 0)],  # warms up from above 0
        [function("linear", 0, 1, 0, 0.01), function("linear", 1, 10, 0.02, 0)],  # jumps
        [function("cyclic_linear", 0, 10, 0.01, 0, ", cycle_epochs: 2")],
        [
            "SetLearningRateModifier {learning_rate: 0.1}",
            "SetLearningRateModifier {start_epoch: 2, learning_rate: 0.01}",
        ],
        [function("linear", 0, 4, 0.01, 0.001), function("linear", 4, 10, 0.001, 0)],
        ["LearningRateModifier {lr_class: StepLR, lr_kwargs: {step_size: 2}, init_lr: 0.1, start_epoch: 0}"],
    ],
)
def test_other_curves_have_to_be_followed(modifiers: list[str]) -> None:
    found = stage(*modifiers)
    assert found.follow_curve
    assert "learning_rate" not in found.train
    assert "lr_scheduler_type" not in found.train


@pytest.mark.parametrize("steps_per_epoch", [1, 4, 25])
@pytest.mark.parametrize(
    ("modifier", "scheduler"),
    [
        ("StepLR, lr_kwargs: {step_size: 2, gamma: 0.5}", lambda o, s: torch.optim.lr_scheduler.StepLR(o, 2 * s, 0.5)),
        (
            "MultiStepLR, lr_kwargs: {milestones: [3, 7], gamma: 0.1}",
            lambda o, s: torch.optim.lr_scheduler.MultiStepLR(o, [3 * s, 7 * s], 0.1),
        ),
        ("ExponentialLR, lr_kwargs: {gamma: 0.9}", lambda o, s: torch.optim.lr_scheduler.StepLR(o, s, 0.9)),
        (
            "CosineAnnealingWarmRestarts, lr_kwargs: {lr_min: 0.01, cycle_epochs: 3}",
            lambda o, s: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3 * s, eta_min=0.01),
        ),
    ],
)
def test_schedulers_of_torch(modifier: str, scheduler: Any, steps_per_epoch: int) -> None:
    found = stage(f"LearningRateModifier {{lr_class: {modifier}, init_lr: 0.1, start_epoch: 0}}")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = scheduler(optimizer, steps_per_epoch)
    expected = []
    for _ in range(10 * steps_per_epoch):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert rates(found, steps_per_epoch, 10 * steps_per_epoch) == pytest.approx(expected, abs=1e-12)


def cyclic(step: int, steps: int, start: float, end: float, cycle: float, first: float, last: float) -> float:
    """SparseML's formula: first - (k mod C) / (C - 1) · (first - last), the last C what is left."""
    whole, length, now = (end - start) * steps, cycle * steps, step - start * steps
    if now > int(whole / length) * length:
        length = whole % length
    return first - (now % length) / (length - 1) * (first - last)


@pytest.mark.parametrize(("end", "cycle"), [(8, 2), (9, 2), (11, 4), (10, 10), (7, 3)])
def test_cyclic_rates(end: int, cycle: int) -> None:
    steps = 12
    found = stage(function("cyclic_linear", 1, end, 0.01, 0.001, f", cycle_epochs: {cycle}"), epochs=12)
    curve = rates(found, steps, end * steps)
    assert curve[: 1 * steps] == [None] * steps
    expected = [cyclic(step, steps, 1, end, cycle, 0.01, 0.001) for step in range(steps, end * steps)]
    assert curve[steps:] == pytest.approx(expected)


def test_a_rate_that_rises_by_a_cosine() -> None:
    found = stage(function("cosine", 0, 4, 0.001, 0.01))
    assert rates(found, 1, 6) == pytest.approx(
        [0.001 + 0.009 * (1 - math.cos(math.pi * x / 4)) / 2 for x in range(4)] + [0.01, 0.01]
    )


def test_the_last_rate_is_held() -> None:
    found = stage(function("linear", 0, 2, 0.01, 0.004), "SetLearningRateModifier {start_epoch: 4, learning_rate: 0.5}")
    assert rates(found, 2, 10) == pytest.approx([0.01, 0.0085, 0.007, 0.0055, 0.004, 0.004, 0.004, 0.004, 0.5, 0.5])


def test_a_moving_rate_wins_over_one_that_was_set_meanwhile() -> None:
    found = stage(function("linear", 0, 4, 0.4, 0), "SetLearningRateModifier {start_epoch: 2, learning_rate: 0.9}")
    assert rates(found, 1, 6) == pytest.approx([0.4, 0.3, 0.2, 0.1, 0, 0])


shapes = st.sampled_from(["linear", "cosine", "cyclic_linear"])


@settings(deadline=None)
@given(
    shape=shapes,
    start=st.floats(0, 5),
    length=st.floats(0.1, 5),
    first=st.floats(0, 1),
    last=st.floats(0, 1),
    cycle=st.floats(0.05, 3),
    steps=st.integers(1, 40),
)
def test_rates_stay_between_their_ends(
    shape: str, start: float, length: float, first: float, last: float, cycle: float, steps: int
) -> None:
    settings_ = {"shape": shape, "start": start, "end": start + length, "first": first, "last": last}
    segment = Segment.model_validate(settings_ | ({"cycle": cycle} if shape == "cyclic_linear" else {}))
    curve = LearningRateCurve(segments=(segment,))
    for step in range(0, 12 * steps, 3):
        rate = curve.learning_rate_at(step, steps_per_epoch=steps)
        assert rate is None or min(first, last) - 1e-12 <= rate <= max(first, last) + 1e-12
        assert (rate is None) == (step // steps + step % steps / steps < start)


def test_no_epochs_no_scheduler() -> None:
    curve = LearningRateCurve(segments=(Segment(shape="linear", start=0, end=4, first=0.1, last=0),))
    assert as_arguments(curve, None) is None
    assert as_arguments(curve, 4) is not None


def test_a_curve_needs_steps() -> None:
    curve = LearningRateCurve(segments=(Segment(shape="constant", first=0.1),))
    with pytest.raises(CurveError, match="1 or more optimizer steps, got 0"):
        curve.learning_rate_at(0, steps_per_epoch=0)


@pytest.mark.parametrize(
    ("modifier", "message"),
    [
        (function("linear", 3, 3, 0.1, 0), "end_epoch must come after start_epoch"),
        (function("linear", 3, -1, 0.1, 0), "end_epoch is required"),
        (function("exp", 0, 3, 0.1, 0), "unknown lr_func 'exp'. Valid: cosine, cyclic_linear, linear"),
        (function("linear", 0, 3, 3, 0), "init_lr must be from 0 to 1, got 3"),
        (function("cyclic_linear", 0, 3, 0.1, 0, ", cycle_epochs: 0"), "cycle_epochs must be above 0"),
        ("SetLearningRateModifier {}", "learning_rate is required"),
        ("LearningRateModifier {lr_class: StepLR, init_lr: 0.1}", "lr_kwargs must be a mapping"),
        (
            "LearningRateModifier {lr_class: StepLR, init_lr: 0.1, lr_kwargs: {gamma: 3, step_size: 1}}",
            "gamma of StepLR must be a number from 0 to 1",
        ),
        (
            "LearningRateModifier {lr_class: MultiStepLR, init_lr: 0.1, lr_kwargs: {milestones: [0]}}",
            "milestones must be epochs after 0",
        ),
        (
            "LearningRateModifier {lr_class: CosineAnnealingWarmRestarts, init_lr: 0.1, "
            "lr_kwargs: {cycle_epochs: 1, T_mult: 2}}",
            "cycles of growing length are not supported",
        ),
        ("LearningRateModifier {lr_class: OneCycleLR, init_lr: 0.1, lr_kwargs: {}}", "unknown lr_class 'OneCycleLR'"),
    ],
)
def test_problems(modifier: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        stage(modifier)
