"""Mode `rigl`: at every update some weights are dropped by their score, and as many grown by their gradient.

Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", section 3: a share α/2 · (1 + cos(π t/T)) of the
kept weights is dropped, and those of the pruned ones grow that have the largest |gradient|, from zero. Here the
gradient is the mean over the steps since the last update, and sparsity may grow on the way: then this is GraNet's
gradual pruning with regrowth (Liu et al. 2021, "Sparse Training via Boosting Pruning Plasticity with
Neuroregeneration").
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from torch import Tensor

from prunegpt.lm.views import WeightView
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.patterns import NOfM, Pattern, Unstructured
from prunegpt.pruning.selection import Scope, select_masks

_SURVIVES = 1e30  # above every gradient, also as the mean of a block in which one weight survives


class Rigl(Enforcer):
    """Arguments are those of :class:`Enforcer`; `fraction` is α, the share of kept weights replaced at first."""

    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})

    def __init__(
        self,
        views: Mapping[str, WeightView],
        masks: Mapping[str, Mask] | None = None,
        *,
        moving: Iterable[str] = (),
        fraction: float = 0.3,
    ) -> None:
        super().__init__(views, masks, moving=moving)
        self._fraction = fraction
        self._progress = 0.0

    def follow(self, progress: float) -> None:
        self._progress = progress

    def select(
        self,
        scores: Mapping[str, Tensor],
        targets: Mapping[str, float],
        *,
        pattern: Pattern,
        scope: Scope,
        masks: Mapping[str, Tensor],
        gathered: Callable[[str], Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """What remains of the present masks once some weights are dropped, and what grows; the count is the target's.

        The first masks are the method's alone, as long as nothing is pruned that might grow.
        """
        share = self._fraction / 2 * (1 + math.cos(math.pi * self._progress))
        begun = any(self.summed([self._pruned(name) for name in scores]))
        if share <= 0 or not begun:
            return super().select(scores, targets, pattern=pattern, scope=scope, masks=masks, gathered=gathered)
        survivors = select_masks(
            scores,
            {name: 1 - (1 - targets[name]) * (1 - share) for name in scores},
            pattern=Unstructured() if isinstance(pattern, NOfM) else pattern,
            scope=scope,
            masks={name: self.views[name].whole(self.mask(name).kept) for name in scores},
        )
        growth = {
            name: gathered(name)["gradient"].abs().masked_fill(survives, _SURVIVES)
            for name, survives in survivors.items()
        }
        return select_masks(growth, targets, pattern=pattern, scope=scope, masks=masks)

    def _pruned(self, name: str) -> int:
        """How many weights of our part of a matrix this training has pruned."""
        return self.mask(name).pruned - (self._held[name].pruned if name in self._held else 0)
