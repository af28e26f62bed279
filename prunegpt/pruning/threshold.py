"""Exact selection of the least important weights: of one tensor, of each of its rows, or of many tensors together.

The k-th smallest score is found by two histograms over the bit patterns of float32: one over the upper 16 bits, one
over the lower 16 bits of what fell into the bin that holds it. Nothing is sorted, concatenated or copied as a whole,
the result is exact, and it is the same on every device. Scores that tie are pruned in order: first tensor first, then
row by row.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from prunegpt.errors import PruningError

_CHUNK = 1 << 22  # scores a pass holds a copy of at a time
_BINS = 1 << 16
_FEW = 1 << 15  # so many scores are searched faster without histograms
_INFINITY = 0x7F800000  # the bits of float32 infinity; NaN lies above
_LOWEST = -(1 << 31)


def zeros_for(count: int, sparsity: float) -> int:
    """How many of `count` weights are zero at a sparsity, rounded to the nearest.

    Raises:
        PruningError: the sparsity is not between 0 and 1.
    """
    if not 0.0 <= sparsity <= 1.0:
        hint = f" Did you mean {sparsity / 100:g}?" if 1.0 < sparsity <= 100.0 else ""
        raise PruningError(f"sparsity must be between 0 and 1, but got {sparsity:g}.{hint}")
    return round(count * sparsity)


def keep_largest(scores: Tensor, zeros: int, *, mask: Tensor | None = None) -> Tensor:
    """The mask of one tensor of which the `zeros` lowest scores are pruned.

    Args:
        scores: any shape, higher = more important.
        zeros: how many weights are pruned in all, those that `mask` prunes included.
        mask: same shape; what it prunes stays pruned. Where it prunes more than `zeros` already, it is the result.

    Returns:
        A bool tensor of the same shape, True = kept.

    Raises:
        PruningError: a score is not finite.
    """
    return _keep([scores], zeros, [mask])[0]


def keep_largest_rows(scores: Tensor, zeros: int, *, mask: Tensor | None = None) -> Tensor:
    """The mask that prunes the `zeros` lowest scores of every row.

    Args:
        scores: [rows, columns].
        zeros: pruned weights a row, those that `mask` prunes included.
        mask: [rows, columns]; what it prunes stays pruned, in a row where that is more than `zeros` too.

    Raises:
        PruningError: a score is not finite.
    """
    scores = scores.float().contiguous()  # [rows, columns]
    if scores.numel() == 0 or zeros == 0:
        return torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.clone()
    low, high = torch.aminmax(scores)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        _refuse()
    if zeros >= scores.shape[1]:
        return torch.zeros_like(scores, dtype=torch.bool)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    threshold = _kth_of_rows(scores, zeros)  # [rows, 1]
    kept = scores > threshold
    spare = (scores.shape[1] - zeros) - kept.sum(dim=1)  # [rows]: ties that are kept, the last ones of the row
    rows = spare.nonzero().squeeze(1)  # [rows with ties to keep]
    if rows.numel():
        ties = scores[rows] == threshold[rows]
        from_the_end = ties.flip(1).cumsum(dim=1).flip(1)
        kept[rows] |= ties & (from_the_end <= spare[rows].unsqueeze(1))
    return kept if mask is None else kept & mask


def global_masks(
    scores: Mapping[str, Tensor], sparsity: float, *, masks: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Masks by one threshold over all tensors: exactly round(total · sparsity) weights are pruned.

    Args:
        scores: name -> [out, in], higher = more important. Their order decides which ties are pruned first.
        sparsity: of all tensors together.
        masks: name -> [out, in], True = kept: what is pruned stays pruned and counts. Names may be missing.

    Raises:
        PruningError: a score is not finite, or the sparsity is not between 0 and 1.
    """
    total = sum(tensor.numel() for tensor in scores.values())
    held = [None if masks is None else masks.get(name) for name in scores]
    return dict(zip(scores, _keep(list(scores.values()), zeros_for(total, sparsity), held), strict=True))


def _keep(tensors: Sequence[Tensor], zeros: int, masks: Sequence[Tensor | None]) -> list[Tensor]:
    tensors = [tensor.float() for tensor in tensors]
    held = sum(mask.numel() - int(torch.count_nonzero(mask)) for mask in masks if mask is not None)
    total = sum(tensor.numel() for tensor in tensors)
    wanted = zeros - held
    if wanted <= 0:
        return [
            torch.ones_like(tensor, dtype=torch.bool) if mask is None else mask.clone()
            for tensor, mask in zip(tensors, masks, strict=True)
        ]
    if zeros >= total:
        return [torch.zeros_like(tensor, dtype=torch.bool) for tensor in tensors]
    threshold, ties = _kth_smallest(tensors, wanted, masks)
    kept = []
    for tensor, mask in zip(tensors, masks, strict=True):
        chosen, ties = _above(tensor, threshold, ties, mask)
        kept.append(chosen)
    return kept


def _above(scores: Tensor, threshold: float, ties: int, mask: Tensor | None) -> tuple[Tensor, int]:
    """What lies above the threshold, or equals it after the first `ties` that do; and how many ties are left."""
    if ties == 0:
        kept = scores >= threshold
        return (kept if mask is None else kept & mask), 0
    equal = scores == threshold
    if mask is not None:
        equal &= mask
    count = int(torch.count_nonzero(equal))
    kept = scores > threshold
    if mask is not None:
        kept &= mask
    if count > ties:
        kept[equal.nonzero()[ties:].unbind(dim=1)] = True
    return kept, max(0, ties - count)


def _kth_smallest(tensors: Sequence[Tensor], k: int, masks: Sequence[Tensor | None]) -> tuple[float, int]:
    """The k-th smallest kept score, counted from 1, and how many of those that equal it are among the k smallest."""
    if sum(tensor.numel() for tensor in tensors) <= _FEW:
        bits = torch.cat([part.to(tensors[0].device) for part in _ordered_bits(tensors, masks)])
        bits = bits[bits != _LOWEST]
        pattern = int(bits.kthvalue(k).values)
        return _value_of(pattern), k - int(torch.count_nonzero(bits < pattern))
    upper = _histogram(part >> 16 for part in _ordered_bits(tensors, masks))
    upper[0] = 0  # no finite score lies there, only those that a mask prunes already
    top, before = _bin_of(upper, k)
    high = top - _BINS // 2
    lower = _histogram(
        (part[(part >> 16) == high] & (_BINS - 1)) - _BINS // 2 for part in _ordered_bits(tensors, masks)
    )
    bottom, below = _bin_of(lower, k - before)
    return _value_of((high << 16) | bottom), k - before - below


def _histogram(parts: Iterable[Tensor]) -> Tensor:
    """How often each number from -32768 to 32767 occurs: [bins], on the CPU."""
    counts = torch.zeros(_BINS, dtype=torch.int64)  # [bins]
    for part in parts:
        counts += torch.bincount(part + _BINS // 2, minlength=_BINS).cpu()
    return counts


def _value_of(bits: int) -> float:
    """The float32 of an int32 that orders like it."""
    (value,) = struct.unpack("<f", struct.pack("<i", bits ^ 0x7FFFFFFF if bits < 0 else bits))
    return float(value)


def _bin_of(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th value, and how many values lie in the bins before it."""
    running = histogram.cumsum(dim=0)
    index = int(torch.searchsorted(running, k))
    return index, int(running[index - 1]) if index else 0


def _ordered_bits(tensors: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Iterator[Tensor]:
    """The scores as int32 that order like the scores, a chunk at a time, in the order of their storage.

    What a mask prunes becomes the lowest int32.
    """
    for tensor, mask in zip(tensors, masks, strict=True):
        flat, flat_mask = _flatten(tensor, mask)
        for start in range(0, flat.numel(), _CHUNK):
            values = flat[start : start + _CHUNK]
            bits = values.view(torch.int32)
            low, high = (int(bound) for bound in torch.aminmax(bits))
            if low < 0:
                bits = (values + 0.0).view(torch.int32)  # -0.0 becomes 0.0: they tie
                bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
                low, high = (int(bound) for bound in torch.aminmax(bits))
            if high >= _INFINITY or low < -_INFINITY:
                _refuse()
            yield bits if flat_mask is None else bits.masked_fill(~flat_mask[start : start + _CHUNK], _LOWEST)


def _flatten(tensor: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if tensor.dim() == 2 and not tensor.is_contiguous() and tensor.t().is_contiguous():
        tensor, mask = tensor.t(), None if mask is None else mask.t()
    return tensor.reshape(-1), None if mask is None else mask.reshape(-1)


def _kth_of_rows(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest of each row, counted from 1: [rows, 1]."""
    if scores.device.type == "cpu":  # numpy's partition is ten times as fast as torch's kthvalue there
        import numpy

        smallest = numpy.partition(scores.detach().numpy(), k - 1, axis=1)[:, k - 1]
        return torch.from_numpy(smallest.copy()).unsqueeze(1)  # [rows, 1]
    return scores.kthvalue(k, dim=1, keepdim=True).values  # [rows, 1]


def _refuse() -> None:
    raise PruningError(
        "importance scores must be finite, but some are NaN or infinite. "
        "Check the weights and the statistics that the criterion was given for NaN, infinity and overflow."
    )
