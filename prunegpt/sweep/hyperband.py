"""Giving up trials as W&B's `early_terminate` does: at certain lengths of a curve, all but the best share stop.

The lengths are called bands. A curve's length is the number of its values, whatever steps they are at.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

_BANDS = 100  # that there are at most
_LONGEST = 2**63


def bands(
    *, min_iter: float | None = None, max_iter: float | None = None, s: float | None = None, eta: float = 3
) -> list[int]:
    """Lengths at which curves are compared, ascending: min_iter·eta^k, or max_iter/eta^k for k = 1 … s."""
    if max_iter is not None:
        count = min(int(s or 0), _BANDS)
        shorter = itertools.accumulate(range(count), lambda length, _: length / eta, initial=max_iter)
        return sorted(int(length) for length in itertools.islice(shorter, 1, None) if length >= 1)
    longer = itertools.accumulate(range(_BANDS - 1), lambda length, _: length * eta, initial=min_iter or 1)
    return [int(length) for length in itertools.takewhile(lambda length: length < _LONGEST, longer)]


def marks(curve: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """The values of a curve at the bands that it has reached: all that others are compared with."""
    return [curve[length - 1] for length in lengths if length <= len(curve)]


def given_up(
    curves: Sequence[Sequence[float]],
    ended: Sequence[Sequence[float]] = (),
    *,
    lengths: Sequence[int],
    eta: float = 3,
    strict: bool = True,
) -> list[bool]:
    """Which of these curves, which still grow, shall end now.

    Args:
        curves: the finite values of each trial so far, lower being better.
        ended: the marks of trials that grow no more, which count as well.
        lengths: as `bands` gives them.
        eta: the best 1/eta of the curves that reach a band pass it.
        strict: the value at the band is compared; otherwise the best value so far.
    """
    growing = [marks(curve, lengths) for curve in curves]
    reached = max(map(len, growing), default=0)
    limits = [_limit([one[band] for one in (*growing, *ended) if len(one) > band], eta) for band in range(reached)]
    return [
        bool(own) and (own[-1] if strict else min(curve)) > limits[len(own) - 1]
        for curve, own in zip(curves, growing, strict=True)
    ]


def _limit(values: Sequence[float], eta: float) -> float:
    """The best value that does not pass any more: the others below it are the best 1/eta."""
    return sorted(values)[int(1 / eta * len(values))]


class WandbHyperband(BasePruner):
    """The same for a search: `early_stop: {method: wandb_hyperband, options: {min_iter: 3}}`.

    Args:
        min_iter: first band, in comparisons.
        max_iter: last band times eta, with `s`, in comparisons.
        s: number of bands below max_iter.
        eta: the best 1/eta of the trials pass a band.
        strict: compare the value at the band, not the best so far.
    """

    def __init__(
        self,
        min_iter: int | None = None,
        max_iter: int | None = None,
        s: int | None = None,
        eta: float = 3,
        strict: bool = True,
    ) -> None:
        if min_iter is None and (max_iter is None or s is None):
            raise ValueError("wandb_hyperband needs min_iter, or max_iter and s, in its options.")
        self._lengths = bands(min_iter=min_iter, max_iter=max_iter, s=s, eta=eta)
        self._eta = eta
        self._strict = strict

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        others = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        compared = [one for one in others if one.state != TrialState.WAITING]
        curves = [_curve(one.intermediate_values) for one in (trial, *compared)]
        return given_up(curves, lengths=self._lengths, eta=self._eta, strict=self._strict)[0]


def _curve(values: Mapping[int, float]) -> list[float]:
    return [values[step] for step in sorted(values) if math.isfinite(values[step])]
