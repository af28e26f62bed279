"""Quantile functions of the distributions that a W&B sweep may name: a share of the probability -> a value."""

import math
from statistics import NormalDist

_TINY = 1e-300
_PRECISION = 1e-14


def uniform(share: float, low: float, high: float) -> float:
    """Evenly between low and high."""
    return low + share * (high - low)


def int_uniform(share: float, low: int, high: int) -> int:
    """Whole numbers from low to high, both included, each as probable."""
    return min(high, low + max(math.ceil(share * (high - low + 1)) - 1, 0))


def log_uniform(share: float, low: float, high: float) -> float:
    """Evenly on a logarithmic scale between two values above 0."""
    return math.exp(uniform(share, math.log(low), math.log(high)))


def inverse_log_uniform(share: float, low: float, high: float) -> float:
    """The reciprocal of a value that is even on a logarithmic scale between 1/high and 1/low."""
    return math.exp(-uniform(1 - share, -math.log(high), -math.log(low)))


def normal(share: float, mu: float, sigma: float) -> float:
    """Normal; `sigma` 0 is the constant `mu`."""
    return mu + sigma * NormalDist().inv_cdf(min(max(share, _TINY), 1 - 1e-16))


def log_normal(share: float, mu: float, sigma: float) -> float:
    """What has a normal logarithm."""
    return math.exp(normal(share, mu, sigma))


def quantized(value: float, step: float) -> float:
    """The nearest multiple of a step, whole where the step is."""
    multiple = float(round(value / step)) * step  # half to even, as numpy rounds
    return int(multiple) if isinstance(step, int) else multiple


def beta(share: float, a: float, b: float) -> float:
    """Beta, by bisection of its distribution function."""
    low, high = 0.0, 1.0
    while high - low > _PRECISION * max(high, _TINY):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if incomplete_beta(a, b, middle) < share else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, the distribution function of beta.

    By its continued fraction (Lentz's method; Numerical Recipes in C, section 6.4).
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 400):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / _away(1 + term * d), _away(1 + term / c)
            result *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return result


def _away(value: float) -> float:
    """Not zero."""
    return value if abs(value) > _TINY else _TINY
