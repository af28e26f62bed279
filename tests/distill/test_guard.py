import json
import math

import pytest
import torch

from prunegpt.distill.guard import DivergenceGuard
from prunegpt.errors import DivergedError


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
@pytest.mark.parametrize("name", ["ce", "kd", "hidden", "loss"])
def test_a_term_that_is_not_finite_is_named_with_its_step(name: str, value: float) -> None:
    guard = DivergenceGuard(128)
    guard.check(1, {"ce": 3.0, "kd": 0.1})
    with pytest.raises(DivergedError, match=rf"finite; {name} is -?(nan|inf) at step 31 .*lower learning rate"):
        guard.check(31, {"ce": 3.0, "kd": 0.1} | {name: value})


def test_an_exploding_cross_entropy_ends_the_run_once_the_median_says_so() -> None:
    guard = DivergenceGuard(128)
    for step in range(10):
        guard.check(step, {"ce": 2.0})
    guard.check(10, {"ce": 9.0})
    guard.check(11, {"ce": 9.0})
    with pytest.raises(DivergedError, match=r"guessing \(4.85 nats\); ce is 9.00 at step 12 after 2\.00"):
        guard.check(12, {"ce": 9.0})


@pytest.mark.parametrize(
    "curve",
    [
        [9.0] * 20,  # bad from the start: not three times the best
        [1.0] * 10 + [4.8] * 10,  # pruned hard: better than guessing still
        [2.0, 2.0, 2.0, 2.0, 30.0] * 6,  # single bad batches
        [10.0 - 0.4 * step for step in range(20)],
    ],
)
def test_what_may_recover_passes(curve: list[float]) -> None:
    guard = DivergenceGuard(128)
    for step, ce in enumerate(curve):
        guard.check(step, {"ce": ce, "kd": 50.0})


def test_without_a_vocabulary_only_finiteness_is_judged() -> None:
    guard = DivergenceGuard()
    for step, ce in enumerate([1.0] * 10 + [1e6] * 10):
        guard.check(step, {"ce": ce})
    with pytest.raises(DivergedError, match="ce is nan"):
        guard.check(20, {"ce": math.nan})


def test_a_resumed_guard_remembers() -> None:
    first = DivergenceGuard(128)
    for step in range(6):
        first.check(step, {"ce": 2.0})
    first.check(6, {"ce": 9.0})
    second = DivergenceGuard(128)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.check(7, {"ce": 9.0})
    with pytest.raises(DivergedError, match=r"at step 8 after 2\.00"):
        second.check(8, {"ce": 9.0})
    fresh = DivergenceGuard(128)
    fresh.load_state_dict(json.loads(json.dumps(DivergenceGuard(128).state_dict())))
    fresh.check(0, {"ce": 2.0})
