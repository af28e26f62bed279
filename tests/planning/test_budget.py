"""Tokens and steps of a training stage, against a loop that counts them."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunegpt.errors import LaunchError
from prunegpt.planning.budget import divided_note, micro_batch, steps, steps_per_epoch, train_tokens
from prunegpt.spec.plan import StagePlan
from tests.support.specs import BASE, trial_of

SIZE = 128


def stage(data: dict[str, Any] | None = None, **train: Any) -> StagePlan:
    base = {**BASE, "data": {**BASE["data"], **(data or {})}}
    return trial_of({"finetune": {"train": train}}, base=base).stages[1]


# Blocks of text, training arguments -> blocks trained on.
CLOSED = [
    (10, {"num_train_epochs": 1, "per_device_train_batch_size": 2}, 10),
    (10, {"num_train_epochs": 3, "per_device_train_batch_size": 2}, 30),
    (10, {"num_train_epochs": 3}, 30),
    (10, {}, 30),  # three epochs are usual
    (10, {"num_train_epochs": 1, "per_device_train_batch_size": 3}, 10),
    (10, {"num_train_epochs": 1, "per_device_train_batch_size": 3, "dataloader_drop_last": True}, 9),
    (10, {"num_train_epochs": 0.5, "per_device_train_batch_size": 2}, 6),  # 2.5 steps are 3
    (10, {"max_steps": 1, "per_device_train_batch_size": 4}, 4),
    (10, {"max_steps": 2, "per_device_train_batch_size": 4}, 8),
    (10, {"max_steps": 3, "per_device_train_batch_size": 4}, 10),
    (10, {"max_steps": 4, "per_device_train_batch_size": 4}, 14),
    (13, {"num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 13),
    (10, {"max_steps": 2, "num_train_epochs": 50, "per_device_train_batch_size": 1}, 2),
    (2, {"num_train_epochs": 1, "per_device_train_batch_size": 8}, 2),
]
assert CLOSED


@pytest.mark.parametrize(("blocks", "train", "seen"), CLOSED)
def test_closed_forms(blocks: int, train: dict[str, Any], seen: int) -> None:
    assert train_tokens(stage(**train), blocks) == seen * SIZE


def count(
    blocks: int, batch: int, accumulation: int, drop_last: bool, epochs: float, limit: int
) -> tuple[int, int, int]:
    """Blocks seen, steps and steps an epoch of a training loop."""
    batches = [min(batch, blocks - start) for start in range(0, blocks, batch)]
    if drop_last:
        batches = [size for size in batches if size == batch]
    an_epoch = [sum(batches[start : start + accumulation]) for start in range(0, len(batches), accumulation)]
    wanted = limit if limit > 0 else math.ceil(len(an_epoch) * epochs)
    seen = taken = 0
    while taken < wanted:
        for size in an_epoch:
            if taken == wanted:
                break
            seen, taken = seen + size, taken + 1
    return seen, taken, len(an_epoch)


@given(
    blocks=st.integers(1, 40),
    batch=st.integers(1, 9),
    accumulation=st.integers(1, 4),
    drop_last=st.booleans(),
    epochs=st.floats(0.1, 4),
    limit=st.one_of(st.just(-1), st.integers(1, 60)),
)
def test_a_loop_counts_the_same(
    blocks: int, batch: int, accumulation: int, drop_last: bool, epochs: float, limit: int
) -> None:
    if drop_last and blocks < batch:
        return  # not one batch
    train = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "dataloader_drop_last": drop_last,
        "num_train_epochs": epochs,
        "max_steps": limit,
    }
    seen, taken, an_epoch = count(blocks, batch, accumulation, drop_last, epochs, limit)
    assert steps_per_epoch(train, blocks) == an_epoch
    assert steps(train, blocks) == taken
    planned = StagePlan.model_validate({**stage().model_dump(), "finetune": {"train": train}})
    assert train_tokens(planned, blocks) == seen * SIZE


def test_a_limit_on_blocks_counts() -> None:
    limited = stage({"max_train_blocks": 4}, num_train_epochs=2)
    assert train_tokens(limited, 10) == 8 * SIZE
    assert train_tokens(limited, 3) == 6 * SIZE


def test_an_unknown_text_has_a_budget_only_where_steps_are_given() -> None:
    assert train_tokens(stage(num_train_epochs=1), None) is None
    assert train_tokens(stage(max_steps=3, per_device_train_batch_size=2), None) == 6 * SIZE
    assert steps({"num_train_epochs": 1}, None) is None


def test_what_does_not_train_sees_no_token() -> None:
    trial = trial_of({"prune": {"sparsity": 0.5}})
    assert [train_tokens(item, 10) for item in trial.stages] == [0, 0]


def test_a_distillation_counts_its_own_text() -> None:
    stages = [
        {
            "distill": {
                "teacher": {"model": "builtin:tiny-gpt2"},
                "train": {"max_steps": 2, "per_device_train_batch_size": 1},
            }
        }
    ]
    base = {**BASE, "data": {"path": "builtin:text", "block_size": 32}}
    assert train_tokens(trial_of(*stages, base=base).stages[1], 100) == 2 * 32


@given(batch=st.integers(1, 12), accumulation=st.integers(1, 4), divide=st.integers(1, 20), blocks=st.integers(1, 60))
def test_smaller_micro_batches_leave_every_step_as_it_is(
    batch: int, accumulation: int, divide: int, blocks: int
) -> None:
    train = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    smaller, more = micro_batch(train, divide)
    assert smaller * more == batch * accumulation
    assert batch % smaller == 0
    assert 1 <= smaller <= max(1, batch / divide)
    divided = {"per_device_train_batch_size": smaller, "gradient_accumulation_steps": more}
    assert steps_per_epoch(divided, blocks) == steps_per_epoch(train, blocks)
    assert bool(divided_note(train, divide)) == (smaller != batch)
    assert micro_batch({**train, "dataloader_drop_last": True}, divide) == (batch, accumulation)


def test_a_note_says_what_was_divided() -> None:
    assert divided_note({"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}, 4) == (
        "micro-batches of 1 instead of 6, 12 instead of 2 to an optimizer step: the same 12 sequences, in less memory",
    )


@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 9), st.integers(1, 8))
def test_processes_share_the_sequences_of_a_step(batch: int, accumulation: int, divide: int, processes: int) -> None:
    train = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    if batch * accumulation % processes:
        with pytest.raises(LaunchError, match=rf"shared evenly by {processes} processes"):
            micro_batch(train, divide, processes)
        return
    own, steps = micro_batch(train, divide, processes)
    assert own * steps * processes == batch * accumulation
    assert own <= micro_batch(train, divide)[0]  # no process needs more memory than one alone


def test_processes_have_fewer_micro_batches_before_smaller_ones() -> None:
    train = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert micro_batch(train, 1, 2) == (4, 2)
    assert micro_batch(train, 1, 8) == (2, 1)
    assert micro_batch({**train, "dataloader_drop_last": True}, 2, 2) == (4, 2)
