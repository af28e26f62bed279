"""Giving up trials as W&B's `early_terminate` does: at certain lengths of a curve, all but the best share stop.

The lengths are called bands. A curve's length is the number of its values, whatever steps they are at.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

_BANDS = 100  # that `min_iter` is multiplied to


def bands(
    *, min_iter: float | None = None, max_iter: float | None = None, s: float | None = None, eta: float = 3
) -> list[int]:
    """Lengths at which curves are compared, ascending: min_iter·eta^k, or max_iter/eta^k for k = 1 … s."""
    if max_iter is not None:
        shorter = itertools.accumulate(range(int(s or 0)), lambda length, _: length / eta, initial=max_iter)
        return sorted(int(length) for length in itertools.islice(shorter, 1, None) if length >= 1)
    longer = itertools.accumulate(range(_BANDS - 1), lambda length, _: length * eta, initial=min_iter or 1)
    return [int(length) for length in longer]


def given_up(
    curves: Sequence[Sequence[float]],
    *,
    lengths: Sequence[int],
    eta: float = 3,
    strict: bool = True,
) -> list[bool]:
    """Which of these curves, of the ones that still grow, shall end now.

    Args:
        curves: the finite values of each trial so far, lower being better; those of ended trials count as well.
        lengths: as `bands` gives them.
        eta: the best 1/eta of the curves that reach a band pass it.
        strict: the value at the band is compared; otherwise the best value so far.
    """
    reached = [length for length in lengths if any(len(curve) >= length for curve in curves)]
    limits = {
        length: _limit([curve[length - 1] for curve in curves if len(curve) >= length], eta) for length in reached
    }
    told = []
    for curve in curves:
        band = max((length for length in reached if length <= len(curve)), default=None)
        told.append(bool(curve) and band is not None and (curve[band - 1] if strict else min(curve)) > limits[band])
    return told


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
