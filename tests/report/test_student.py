"""Student's t against closed forms."""

import math
from statistics import NormalDist

import pytest

from prunegpt.report.statistics import quantile, two_sided

CLOSED = {  # P(|T| >= t)
    1: lambda t: 1 - 2 * math.atan(t) / math.pi,
    2: lambda t: 1 - t / math.sqrt(2 + t * t),
    3: lambda t: 1 - 2 / math.pi * (math.atan(t / math.sqrt(3)) + t * math.sqrt(3) / (3 + t * t)),
    4: lambda t: 1 - t * (6 + t * t) / (4 + t * t) ** 1.5,
}


@pytest.mark.parametrize("freedom", CLOSED)
@pytest.mark.parametrize("t", [0.0, 0.1, 1.0, 2.5, 12.0])
def test_closed_forms(freedom: int, t: float) -> None:
    assert two_sided(t, freedom) == pytest.approx(CLOSED[freedom](t), rel=1e-9, abs=1e-12)
    assert two_sided(-t, freedom) == two_sided(t, freedom)


@pytest.mark.parametrize("t", [0.5, 1.96, 4.0])
def test_many_degrees_of_freedom_are_normal(t: float) -> None:
    normal = 2 * NormalDist().cdf(-t)
    assert two_sided(t, 1e16) == pytest.approx(normal, rel=1e-12)
    assert two_sided(t, 9e4) == pytest.approx(normal, rel=2e-3)
    assert two_sided(t, 30) > normal  # heavier tails


@pytest.mark.parametrize("freedom", [1, 1.6, 2, 7.3, 100, 1e4])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_quantile_inverts(freedom: float, level: float) -> None:
    assert two_sided(quantile(level, freedom), freedom) == pytest.approx(1 - level, rel=1e-9)


def test_infinite_statistic_has_no_probability() -> None:
    assert two_sided(math.inf, 3) == 0.0
