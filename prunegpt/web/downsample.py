"""Fewer points for the same picture: the least and the greatest of each stretch stay."""

import numpy as np
from numpy.typing import NDArray


def extremes(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Which points to keep, by position, in order.

    The points are cut into stretches of equal number; of each the least and the greatest finite value stay, and one
    that is not finite where there is one, so that a gap stays a gap. The first and the last point stay.

    Args:
        values: [points], NaN where a value is not finite.
        count: how many to keep at most, at least 5; all where there are not more.
    """
    total = len(values)
    if total <= count:
        return np.arange(total, dtype=np.int64)
    buckets = max(1, (count - 2) // 3)
    edges = np.linspace(0, total, buckets + 1).astype(np.int64)  # [buckets + 1]
    starts = edges[:-1]
    missing = ~np.isfinite(values)
    low = np.where(missing, np.inf, values)
    high = np.where(missing, -np.inf, values)
    kept = np.zeros(total, dtype=bool)
    kept[[0, total - 1]] = True
    bucket = np.repeat(np.arange(buckets), np.diff(edges))  # [points]
    for flags in (
        low == np.minimum.reduceat(low, starts)[bucket],
        high == np.maximum.reduceat(high, starts)[bucket],
        missing,
    ):
        positions = np.flatnonzero(flags)
        _, first = np.unique(bucket[positions], return_index=True)
        kept[positions[first]] = True
    return np.flatnonzero(kept).astype(np.int64)
