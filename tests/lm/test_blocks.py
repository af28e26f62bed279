"""Rows that several processes share: every batch has the rows that it has with one process, each of them once."""

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from prunegpt.lm.blocks import Blocks, Shared, SharedSampler, collate

BLOCKS = Blocks(np.arange(40, dtype=np.uint16).reshape(10, 4))


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_processes_get_equal_parts_of_the_batches_of_one(rows: int, own: int, processes: int) -> None:
    batch = own * processes
    sampler = SharedSampler(range(rows), batch, rows)
    parts = [list(BatchSamplerShard(BatchSampler(sampler, own, False), processes, rank)) for rank in range(processes)]
    assert {len(part) for part in parts} == {-(-rows // batch)}
    for number, batches in enumerate(zip(*parts, strict=True)):
        wanted = list(range(rows))[number * batch : (number + 1) * batch]
        assert [row.block for part in batches for row in part if row.real] == wanted
        assert {row.rows for part in batches for row in part} == {len(wanted)}
        assert {len(part) for part in batches} == {own}


def test_the_order_is_that_of_one_process_in_every_epoch() -> None:
    alone = SeedableRandomSampler(BLOCKS, data_seed=7)
    together = SharedSampler(SeedableRandomSampler(BLOCKS, data_seed=7), 4, 10)
    assert len(together) == 12
    orders = []
    for epoch in (0, 1, 5):
        alone.set_epoch(epoch)
        together.set_epoch(epoch)
        orders.append(list(alone))
        assert [row.block for row in together if row.real] == orders[-1]
    assert orders[0] != orders[1] != orders[2]


def test_rows_that_are_dropped_are_not_shared() -> None:
    assert [row.block for row in SharedSampler(range(10), 4, 8)] == list(range(8))


def test_a_batch_of_one_process_is_numbered_tokens() -> None:
    batch = collate([BLOCKS[3], BLOCKS[5]])
    assert batch.keys() == {"input_ids", "labels", "block", "seen"}
    assert batch["block"].tolist() == [3, 5]
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[12, 13, 14, 15], [20, 21, 22, 23]]


def test_rows_that_fill_up_are_left_out_or_not_trained_on() -> None:
    real, filler = Shared(2, real=True, rows=1), Shared(0, real=False, rows=1)
    mixed = collate([BLOCKS[real], BLOCKS[filler]])
    assert (mixed["block"].tolist(), int(mixed["rows"])) == ([2], 1)
    assert torch.equal(mixed["labels"], mixed["input_ids"])
    empty = collate([BLOCKS[filler], BLOCKS[filler]])
    assert empty["input_ids"].shape == (1, 4)
    assert empty["labels"].tolist() == [[-100] * 4]
    assert int(empty["rows"]) == 1
