"""Mode `live`: pruned weights learn behind their mask, so that a weight can come back with a value.

The model computes with W ⊙ M. The gradient of W ⊙ M reaches all of W, straight through the mask, and what is pruned is
pulled towards zero: ∇ + λ · (1 - M) ⊙ W (SR-STE: Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural
Networks From Scratch", eq. 7). Masks are chosen again from W at every update. With a pull that grows (`ramp`) and a
distillation this is AST-naive (Huang et al. 2024, "Pruning Large Language Models with Semi-Structural Adaptive Sparse
Training", section 3). The low-rank layers of AST-boosted are not here: merged they make a dense model.

Weights are stored as W ⊙ M, and (1 - M) ⊙ W beside them; the two are joined for the time of the optimizer's step. As in
AST, the pull is added after clipping, which sees the gradient of the loss alone.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from prunegpt.lm.views import WeightView
from prunegpt.pruning.enforce import HasState
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.modes.shadow import Shadowed


class Live(Shadowed):
    """Arguments are those of :class:`Shadowed`; `decay` is the strength λ."""

    def __init__(
        self,
        views: Mapping[str, WeightView],
        masks: Mapping[str, Mask] | None = None,
        *,
        moving: Iterable[str] = (),
        decay: float = 2e-4,
        ramp: float = 0.0,
    ) -> None:
        super().__init__(views, masks, moving=moving, strength=decay, ramp=ramp)

    @torch.no_grad()
    def before_optimizer(self, *, scale: float = 1.0) -> None:
        for name, hidden in self._shadows.items():
            gradient = self.views[name].gradient
            if gradient is not None:
                gradient.add_(hidden, alpha=self._pull * scale)
        self._show()

    @torch.no_grad()
    def mask_weights(self) -> None:
        for name in () if self._over else self._moving:
            if (held := self._held.get(name)) is not None:
                held.apply(self.views[name].matrix)
            if (mask := self._masks.get(name)) is not None:
                hidden = mask.under(self.views[name].matrix)  # [out, in]
                if name in self._shadows:  # nothing was shown since
                    hidden += self._shadows[name]
                self._shadows[name] = hidden
        super().mask_weights()

    def learning(self, view: WeightView) -> Tensor:
        hidden = self._shadows.get(view.name)
        return view.matrix if hidden is None else view.matrix + hidden

    @torch.no_grad()
    def update(self, masks: Mapping[str, Mask], optimizer: HasState | None, *, last: bool) -> tuple[str, ...]:
        self._show()
        if last:
            self._over = True
            self._masks = dict(self._held)  # weights that come back now keep their moments
        return super().update(masks, optimizer if last else None, last=last)

    def _show(self) -> None:
        """Puts pruned weights back into the model."""
        for name, hidden in self._shadows.items():
            self.views[name].matrix.add_(hidden)
        self._shadows.clear()
