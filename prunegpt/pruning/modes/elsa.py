"""Mode `elsa`: the optimizer minimises the loss under the constraint of sparsity, by ADMM over the whole objective.

With x the weights, z their sparse copy and u the scaled dual variable, the optimizer is given the gradient of
f(x) + λ/2 ‖x - z + u‖². At an update z = Π(x + u) and u += x - z, where Π keeps the weights that the method scores
highest; at the first one u = 0, at the last one x = Π(x). Lee et al. 2026, "The Unseen Frontier: Pushing the Limits of
LLM Sparsity with Surrogate-Free ADMM" (ELSA). As in their code, the penalty is added after clipping.

Until the last update the model is dense. z and u have no weight in common (z is kept, u is what Π leaves), so that one
tensor holds both: t = z - u, which is what x is pulled towards.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from prunegpt.lm.views import WeightView
from prunegpt.pruning.enforce import HasState
from prunegpt.pruning.mask import Mask, Masks
from prunegpt.pruning.modes.shadow import Shadowed


class Elsa(Shadowed):
    """Arguments are those of :class:`Shadowed`; `penalty` is the strength λ."""

    def __init__(
        self,
        views: Mapping[str, WeightView],
        masks: Mapping[str, Mask] | None = None,
        *,
        moving: Iterable[str] = (),
        penalty: float = 0.01,
        ramp: float = 0.0,
    ) -> None:
        super().__init__(views, masks, moving=moving, strength=penalty, ramp=ramp)
        self._support: Masks = {}  # of z

    @property
    def chosen(self) -> Masks:
        return {**self._masks, **self._support}

    @torch.no_grad()
    def before_optimizer(self, *, scale: float = 1.0) -> None:
        for name, target in self._shadows.items():
            view = self.views[name]
            if view.gradient is not None:
                view.gradient.add_(view.matrix - target, alpha=self._pull * scale)

    def scored(self, view: WeightView) -> Tensor:
        if self._progress >= 1.0 or view.name not in self._shadows:
            return view.matrix
        return view.matrix - self._support[view.name].under(self._shadows[view.name])  # x + u

    @torch.no_grad()
    def update(self, masks: Mapping[str, Mask], optimizer: HasState | None, *, last: bool) -> tuple[str, ...]:
        if last:
            self._over = True
            self._shadows.clear()
            self._support.clear()
            matrices = {name: self.views[name].matrix for name in masks}
            lost = [mask.under(matrices[name]).square().sum() for name, mask in masks.items()]
            norms = torch.stack([*lost, *(matrix.square().sum() for matrix in matrices.values())]).tolist()
            gone, before = self.summed([sum(norms[: len(lost)]), sum(norms[len(lost) :])])
            share = gone / max(before, 1e-30)
            note = f"elsa: the last projection took {share:.2%} of the squared norm of the weights"
            return (note, *super().update(masks, optimizer, last=True))
        for name, given in masks.items():
            view = self.views[name]
            summed, mask = self.scored(view), given.like(view.matrix)  # [out, in]: x + u
            factor = 2.0 if name in self._shadows else 1.0  # u is 0 at first: what Π leaves is not in it yet
            self._shadows[name] = summed - factor * mask.under(summed)
            self._support[name] = mask
        return ()

    def state_dict(self) -> dict[str, Tensor]:
        whole = {name: self.views[name].whole(mask.kept) for name, mask in self._support.items()}
        support = {f"support/{name}": kept.cpu().contiguous() for name, kept in whole.items()}
        return {**super().state_dict(), **support}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        whole = {name: Mask(state[f"support/{name}"]) for name in self._shadows}
        self._support = {name: mask.like(self.views[name].matrix) for name, mask in self._parts(whole).items()}
