"""What modes have in common that keep a tensor of their own beside each weight, and pull at weights until the end."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from prunegpt.lm.views import WeightView
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.mask import Mask, Masks


class Shadowed(Enforcer):
    """Masks with a tensor beside each moving weight until the last ones are chosen; then as :class:`Enforcer`.

    Args:
        views, masks, moving: as :class:`Enforcer`.
        strength: of the pull.
        ramp: share of the way from start to end of pruning in which the pull grows from 0 to its strength, linearly.
    """

    def __init__(
        self,
        views: Mapping[str, WeightView],
        masks: Mapping[str, Mask] | None = None,
        *,
        moving: Iterable[str] = (),
        strength: float,
        ramp: float,
    ) -> None:
        super().__init__(views, masks, moving=moving)
        self._strength, self._ramp = strength, ramp
        self._progress = 0.0
        self._shadows: dict[str, Tensor] = {}  # [out, in], in the memory layout of the weight
        self._over = False  # whether the last masks are chosen

    def follow(self, progress: float) -> None:
        self._progress = progress

    def state_dict(self) -> dict[str, Tensor]:
        whole = {name: self.views[name].whole(shadow) for name, shadow in self._shadows.items()}
        shadows = {f"shadow/{name}": shadow.cpu().contiguous() for name, shadow in whole.items()}
        return {**shadows, "over": torch.tensor(self._over)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._over = bool(state["over"])
        self._shadows = {
            name: torch.empty_like(view.matrix).copy_(view.part(state[f"shadow/{name}"]))
            for name, view in self.views.items()
            if f"shadow/{name}" in state
        }

    @property
    def _shut(self) -> Masks:
        return self._masks if self._over else self._held

    @property
    def _pull(self) -> float:
        """The strength of the pull at this step."""
        return self._strength * (min(self._progress / self._ramp, 1.0) if self._ramp else 1.0)
