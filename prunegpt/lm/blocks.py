"""Blocks of tokens as a dataset, and how several processes share them.

Every optimizer step of several processes sees the rows that it would see with one.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

_NOT_TRAINED = -100  # the label that losses pass over


class Shared(NamedTuple):
    """A row of a batch that several processes share.

    Args:
        block: its number.
        real: False for a row that fills up the last batch of an epoch; it must not be trained on.
        rows: real rows in the batch, over all processes.
    """

    block: int
    real: bool
    rows: int


class Blocks(Dataset[Tensor]):
    """Token blocks [blocks, block_size], memory-mapped or not, as a dataset of rows.

    Args:
        counted: which tokens the loss counts, [blocks, block_size]; None: all.
        limit: only the first N blocks.
    """

    def __init__(
        self, tokens: np.ndarray[Any, Any], counted: np.ndarray[Any, Any] | None = None, limit: int | None = None
    ) -> None:
        self.tokens = tokens[:limit]
        self.counted = None if counted is None else counted[:limit]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the record of a training on them should say."""
        if self.counted is None:
            return ()
        share, size = float(self.counted.mean()), self.counted.size
        return (
            f"loss on responses: {share:.1%} of the {size:,} tokens of {len(self):,} sequences; others are context",
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> Any:
        place = index.block if isinstance(index, Shared) else index
        return index, self.tokens[place], None if self.counted is None else self.counted[place]


def collate(rows: list[tuple[Any, np.ndarray[Any, Any], np.ndarray[Any, Any] | None]]) -> dict[str, Any]:
    """Rows become a batch; the labels are the tokens, which the model shifts, or those of them that the loss counts.

    The numbers of the blocks, `block` [batch], and their tokens once more, `seen` [batch, block_size], are arrays of
    numpy: they stay on the host when the batch moves to a device.

    `responses` in it says that the loss does not count all tokens.

    Of rows that are shared with other processes those that only fill up the batch are left out; where there are no
    others, one stays that is not trained on.
    """
    used = [row for row in rows if not isinstance(row[0], Shared) or row[0].real] or rows[:1]
    seen = np.stack([row for _, row, _ in used]).astype(np.int64)  # [batch, block_size]
    tokens = torch.from_numpy(seen)  # [batch, block_size]
    labels, more = tokens, dict[str, Any](seen=seen)
    counted = [row for *_, row in used if row is not None]
    if counted:
        labels = tokens.where(torch.from_numpy(np.stack(counted)), _NOT_TRAINED)  # [batch, block_size]
        more["responses"] = True
    first = used[0][0]
    if not isinstance(first, Shared):
        return {"input_ids": tokens, "labels": labels, "block": np.array([index for index, *_ in used]), **more}
    return {
        "input_ids": tokens,
        "labels": labels if first.real else torch.full_like(tokens, _NOT_TRAINED),
        "block": np.array([row.block for row, *_ in used]),
        "rows": first.rows,
        **more,
    }


class SharedSampler(Sampler[Shared]):
    """The order of another sampler, filled up to whole batches, so that each process gets an equal part of each.

    Args:
        sampler: the order of one process.
        batch: rows that all processes take at a time.
        keep: rows of the order that are used.
    """

    def __init__(self, sampler: Sampler[int], batch: int, keep: int) -> None:
        self._sampler = sampler
        self._batch = batch
        self._keep = keep

    def __len__(self) -> int:
        return -(-self._keep // self._batch) * self._batch

    def __iter__(self) -> Iterator[Shared]:
        return shared(list(self._sampler)[: self._keep], self._batch)

    def set_epoch(self, epoch: int) -> None:
        """Passes on which epoch it is: the order depends on it."""
        getattr(self._sampler, "set_epoch", lambda _: None)(epoch)


def shared(order: Sequence[int], batch: int) -> Iterator[Shared]:
    """An order of blocks, cut into batches of `batch` rows, the last one filled up."""
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        for index in rows:
            yield Shared(index, real=True, rows=len(rows))
        for _ in range(batch - len(rows)):
            yield Shared(order[0], real=False, rows=len(rows))
