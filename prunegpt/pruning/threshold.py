"""Exact selection of the least important weights: of one tensor, of each of its rows, or of many tensors together.

The k-th smallest score is found by two histograms over the bit patterns of float32: one over the upper 16 bits, one
over the lower 16 bits of what fell into the bin that holds it. Nothing is sorted, concatenated or copied as a whole,
the result is exact. Scores that tie are pruned in order: first tensor first, then
row by row. That is on a CPU; on an accelerator :mod:`prunegpt.pruning.bisection` finds the same score.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.pruning.bisection import check_finite, keep_by_bisection, refuse
from prunegpt.pruning.mask import kept_bits

CHUNK = 1 << 19  # scores per pass: what it makes of them stays in the cache of a CPU
_BINS = 1 << 16
_ZERO = _BINS // 2  # the bin of 0, the lowest half being negative
FEW = 1 << 15  # up to this number, scores are searched faster without histograms
_NEGATIVE_ZERO = -(1 << 31)  # its bits; it ties with zero


def zeros_for(count: int, sparsity: float) -> int:
    """How many of `count` weights are zero at a sparsity, rounded to the nearest.

    Raises:
        PruningError: the sparsity is not between 0 and 1.
    """
    if not 0.0 <= sparsity <= 1.0:
        hint = f" Did you mean {sparsity / 100:g}?" if 1.0 < sparsity <= 100.0 else ""
        raise PruningError(f"sparsity must be between 0 and 1, got {sparsity:g}.{hint}")
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
    check_finite(scores)
    if zeros >= scores.shape[1]:
        return torch.zeros_like(scores, dtype=torch.bool)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    threshold = kth_of_rows(scores, zeros)  # [rows, 1]
    kept = scores > threshold
    spare = (scores.shape[1] - zeros) - kept.sum(dim=1)  # [rows]: ties that are kept, the last ones of the row
    if scores.device.type != "cpu":  # which rows have some is not asked: the host would wait
        ties = scores == threshold
        kept |= ties & (ties.flip(1).cumsum(dim=1).flip(1) <= spare.unsqueeze(1))
        return kept if mask is None else kept & mask
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
    total = sum(tensor.numel() for tensor in tensors)
    if zeros >= total:
        return [torch.zeros_like(tensor, dtype=torch.bool) for tensor in tensors]
    if zeros > 0 and tensors[0].device.type != "cpu":
        return keep_by_bisection(tensors, zeros, masks)
    held = 0 if zeros <= 0 else _pruned(masks)
    wanted = zeros - held
    if wanted <= 0:
        return [
            torch.ones_like(tensor, dtype=torch.bool) if mask is None else mask.clone()
            for tensor, mask in zip(tensors, masks, strict=True)
        ]
    threshold, ties = _kth_smallest(tensors, wanted, masks)
    kept = []
    for tensor, mask in zip(tensors, masks, strict=True):
        chosen, ties = _above(tensor, threshold, ties, mask)
        kept.append(chosen)
    return kept


def _pruned(masks: Sequence[Tensor | None]) -> int:
    return sum(mask.numel() - int(torch.count_nonzero(mask)) for mask in masks if mask is not None)


def _above(scores: Tensor, threshold: float, ties: int | None, mask: Tensor | None) -> tuple[Tensor, int | None]:
    """What is above the threshold or, after the first `ties` that equal it, equals it; and how many ties are left.

    None for ties means all of them, which are not looked for.
    """
    kept = scores >= threshold if ties == 0 else scores > threshold
    if mask is not None:
        kept &= mask
    if not ties:
        return kept, ties
    equal = scores == threshold
    if mask is not None:
        equal &= mask
    count = int(torch.count_nonzero(equal))
    if count > ties:
        kept[equal.nonzero()[ties:].unbind(dim=1)] = True
    return kept, max(0, ties - count)


def _kth_smallest(tensors: Sequence[Tensor], k: int, masks: Sequence[Tensor | None]) -> tuple[float, int | None]:
    """The k-th smallest kept score, counted from 1, and how many of those that equal it are among the k smallest.

    The latter is None where all of them are, as where no two scores are equal.
    """
    if sum(tensor.numel() for tensor in tensors) <= FEW:
        return _kth_of_few(tensors, k, masks)
    upper = _histogram((bits >> 16).add_(_ZERO) for bits in _bits(tensors, masks))
    if bool(upper[_ZERO - 0x80 : _ZERO].any() | upper[_ZERO + 0x7F80 :].any()):
        refuse()
    upper[:_ZERO] = upper[:_ZERO].flip(0)  # the bits of negative floats grow away from zero
    negative_zeros = 0
    if upper[_ZERO - 1]:
        negative_zeros = sum(int(torch.count_nonzero(bits == _NEGATIVE_ZERO)) for bits in _bits(tensors, masks))
    held = _pruned(masks)
    upper[_ZERO - 1] -= negative_zeros
    upper[_ZERO] += negative_zeros - held
    top, before = _bin_of(upper, k)
    high = top - _ZERO
    flip = 0 if high >= 0 else 0xFFFF
    bits_high = high if high >= 0 else high ^ 0x7FFF
    lower = _histogram((_with_high(bits, bits_high) & 0xFFFF).bitwise_xor_(flip) for bits in _bits(tensors, masks))
    if high == -1:
        lower[-1] -= negative_zeros
    if high == 0:
        lower[0] += negative_zeros - held
    bottom, below = _bin_of(lower, k - before)
    ties = k - before - below
    return _value_of((high << 16) | bottom), None if ties == int(lower[bottom]) else ties


def _kth_of_few(tensors: Sequence[Tensor], k: int, masks: Sequence[Tensor | None]) -> tuple[float, int | None]:
    flat = [_flatten(tensor, mask) for tensor, mask in zip(tensors, masks, strict=True)]
    kept = [(scores if mask is None else scores[mask]).to(tensors[0].device) for scores, mask in flat]
    joined = torch.cat(kept)  # [kept scores]
    if not bool(torch.isfinite(joined).all()):
        refuse()
    threshold = joined.kthvalue(k).values
    ties = k - int(torch.count_nonzero(joined < threshold))
    return float(threshold), None if ties == int(torch.count_nonzero(joined == threshold)) else ties


def _histogram(parts: Iterable[Tensor]) -> Tensor:
    """How often each number from 0 to 65535 occurs: [bins]."""
    counts = torch.zeros(_BINS, dtype=torch.int64)  # [bins]
    for part in parts:
        counts += torch.bincount(part, minlength=_BINS)
    return counts


def _with_high(bits: Tensor, high: int) -> Tensor:
    """The int32 whose upper 16 bits are `high`."""
    array = bits.numpy()  # numpy takes a third of the time of torch to select few
    return torch.from_numpy(array[(array >> 16) == high])


def _value_of(bits: int) -> float:
    """The float32 that an int32 orders like: its bits, and for a negative one those with all but the sign flipped."""
    (value,) = struct.unpack("<f", struct.pack("<i", bits ^ 0x7FFFFFFF if bits < 0 else bits))
    return float(value)


def _bin_of(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th value, and how many values are in the bins before it."""
    running = histogram.cumsum(dim=0)
    index = int(torch.searchsorted(running, k))
    return index, int(running[index - 1]) if index else 0


def _bits(tensors: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Iterator[Tensor]:
    """The bits of the scores as int32, a chunk at a time, in the order of their storage; 0 for what a mask prunes."""
    for tensor, mask in zip(tensors, masks, strict=True):
        scores, kept = _flatten(tensor, mask)
        for start in range(0, scores.numel(), CHUNK):
            bits = scores[start : start + CHUNK].view(torch.int32)
            yield bits if kept is None else bits & kept_bits(kept[start : start + CHUNK])


def _flatten(tensor: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if tensor.dim() == 2 and not tensor.is_contiguous() and tensor.t().is_contiguous():
        tensor, mask = tensor.t(), None if mask is None else mask.t()
    return tensor.reshape(-1), None if mask is None else mask.reshape(-1)


def kth_of_rows(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest of each row, counted from 1: [rows, 1]."""
    if scores.device.type == "cpu":  # numpy's partition is ten times as fast as torch's kthvalue there
        import numpy

        smallest = numpy.partition(scores.detach().numpy(), k - 1, axis=1)[:, k - 1]
        return torch.from_numpy(smallest.copy()).unsqueeze(1)  # [rows, 1]
    return scores.kthvalue(k, dim=1, keepdim=True).values  # [rows, 1]
