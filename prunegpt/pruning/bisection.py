"""The least important weights on an accelerator, found without waiting for it.

The k-th smallest score is found by halving, 32 times, the range of bit patterns that float32 orders like integers: each
halving counts the scores up to the middle, on the device. It is exact, copies no score, and gives what the histograms
of :mod:`prunegpt.pruning.threshold` give, whose counts the host has to see; ties are pruned in the same order.

Whether scores are finite is seen on the host too: at once, or for many tensors together at the end of
:func:`checked_together`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from prunegpt.errors import PruningError

_BITS = 32
_LOWEST, _HIGHEST = -0x7F800001, 0x7F800000  # of minus infinity and of infinity, as :func:`_value` orders them
_open: ContextVar[list[Tensor] | None] = ContextVar("open checks", default=None)


@contextmanager
def checked_together() -> Iterator[list[Tensor]]:
    """Scores that are checked while the context lasts are judged when it ends, with one wait for the device.

    Yields:
        Whether they are finite, bool [] each, so far. Whoever takes them out of the list judges them.

    Raises:
        PruningError: some were not finite. Whatever was chosen by them is worth nothing.
    """
    flags: list[Tensor] = []
    token = _open.set(flags)
    try:
        yield flags
    finally:
        _open.reset(token)
    if flags and not bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all()):
        refuse()


def check_finite(scores: Tensor) -> None:
    """Looks that scores are finite; on an accelerator in :func:`checked_together`, when that ends.

    Raises:
        PruningError: they are not.
    """
    if not scores.numel():
        return
    low, high = torch.aminmax(scores.detach())
    finite = torch.isfinite(low) & torch.isfinite(high)
    flags = _open.get()
    if flags is not None and scores.device.type != "cpu":
        flags.append(finite)
    elif not bool(finite):
        refuse()


def refuse() -> None:
    raise PruningError(
        "importance scores must be finite; some are NaN or infinite. Check the weights and the statistics that the "
        "criterion was given for NaN, infinity and overflow."
    )


def keep_by_bisection(tensors: Sequence[Tensor], zeros: int, masks: Sequence[Tensor | None]) -> list[Tensor]:
    """Masks of several tensors of one device of which together the `zeros` lowest scores are pruned.

    Args:
        tensors: float32, of any shapes.
        zeros: how many are pruned in all, at least 1 and fewer than there are; those that masks prune count.
        masks: True = kept: what is pruned stays pruned.
    """
    for tensor in tensors:
        check_finite(tensor)
    scores = [
        tensor if mask is None else tensor.masked_fill(~mask, -torch.inf)
        for tensor, mask in zip(tensors, masks, strict=True)
    ]
    place = scores[0].device
    low = torch.full((), _LOWEST, dtype=torch.int64, device=place)
    high = torch.full((), _HIGHEST, dtype=torch.int64, device=place)
    for _ in range(_BITS):
        middle = (low + high) >> 1
        value = _value(middle)
        enough = _total([tensor <= value for tensor in scores]) >= zeros
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, middle + 1)
    threshold = _value(high)
    ties = zeros - _total([tensor < threshold for tensor in scores])  # how many that equal it are pruned
    kept = []
    for tensor, mask in zip(scores, masks, strict=True):
        equal = (tensor == threshold).reshape(-1)
        rank = equal.cumsum(0, dtype=torch.int64)  # [scores]: among those that equal it, from 1
        chosen = (tensor > threshold) | (equal & (rank > ties)).view(tensor.shape)
        ties = ties - rank[-1:].sum()
        kept.append(chosen if mask is None else chosen & mask)
    return kept


def _value(order: Tensor) -> Tensor:
    """The float32 that an integer stands for in the order of all of them."""
    bits = torch.where(order < 0, order ^ 0x7FFFFFFF, order)
    return bits.to(torch.int32).view(torch.float32)


def _total(found: list[Tensor]) -> Tensor:
    return torch.stack([one.sum(dtype=torch.int64) for one in found]).sum()
