"""Student's t distribution, for few windows and few seeds."""

import math
from functools import cache
from statistics import NormalDist

import numpy as np

_NORMAL_FROM = 1e5  # degrees of freedom from which the normal distribution is the same to six digits
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def two_sided(t: float, freedom: float) -> float:
    """The probability that |T| is at least |t|.

    With t = √ν · cot φ the density becomes sin^(ν-1) φ, smooth and bounded, so that one Gauss-Legendre rule does for
    all tails.

    Args:
        t: the statistic.
        freedom: degrees of freedom ν, at least 1; need not be whole.
    """
    if t == 0:
        return 1.0
    if not math.isfinite(t):
        return 0.0
    if freedom > _NORMAL_FROM:
        return math.erfc(abs(t) / math.sqrt(2))
    upper = math.atan2(math.sqrt(freedom), abs(t))
    angles = upper * (_NODES + 1) / 2
    tail = float(upper / 2 * np.sum(_WEIGHTS * np.sin(angles) ** (freedom - 1)))
    log_whole = 0.5 * math.log(math.pi) + math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2) - math.log(2)
    return min(1.0, tail / math.exp(log_whole))


@cache
def quantile(level: float, freedom: float) -> float:
    """The t that |T| stays below with probability `level`: 0.95 gives 1.96 for many degrees of freedom."""
    low, high = 0.0, NormalDist().inv_cdf(0.5 + level / 2) + 1.0
    while two_sided(high, freedom) > 1 - level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) > 1 - level else (low, middle)
    return (low + high) / 2
