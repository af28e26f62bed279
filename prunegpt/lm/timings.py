"""What repeated measurements of time come to: medians, intervals that assume no distribution, and how noisy it was.

Runs of the model and of its reference take turns, and every other pair is turned round (reference, model, model,
reference, …), so that a machine that slows down favours neither. The ratio is that of the two runs of a pair; the
noise is the same figure of the reference alone, from runs that follow each other.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from prunegpt.records import Timed

LEVEL = 0.95
FEWEST = 6  # measurements below which no pair of them is an interval of that level


def median(values: NDArray[np.float64]) -> Timed:
    """The median with its interval by the sign test: two order statistics that hold it with at least 95%.

    Args:
        values: [measurements], at least `FEWEST`, each as likely above the true median as below.
    """
    ordered, count = np.sort(values), len(values)
    within = [place for place in range(count // 2) if 2 * bdtr(place, count, 0.5) <= 1 - LEVEL]
    place = within[-1] if within else 0
    return Timed(value=float(np.median(ordered)), low=float(ordered[place]), high=float(ordered[count - 1 - place]))


def ratio(model: NDArray[np.float64], reference: NDArray[np.float64]) -> Timed:
    """How many times as fast the model is as its reference: the median over pairs.

    Args:
        model: seconds of its runs, [repeats].
        reference: of the run of the reference beside each, [repeats].
    """
    return median(reference / model)


def noise(reference: NDArray[np.float64]) -> float:
    """How far from 1 the ratio of a reference to itself may be: the farther end of its interval, from successive runs.

    Such runs are two turns apart on average, those of a pair one: the machine is at most as noisy as this says.

    Args:
        reference: seconds of its runs, in order, [repeats].
    """
    found = ratio(reference[1:], reference[:-1])
    return max(1 - found.low, found.high - 1)
