"""What one-shot pruning says about what it did."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

OnLayer = Callable[[int, int, str], None]  # layers done, layers in all, name of the last one


@dataclass(frozen=True)
class LayerRow:
    """What became of one layer.

    Attributes:
        name: of the parameter.
        weights: how many it has.
        sparsity: the share that is pruned now, counted from the mask.
        error: the share of the layer's output that is lost on the calibration data, as in
            :class:`~prunegpt.pruning.solvers.base.Solution`; None where no Gram matrix was at hand.
        damping: the solver's; None for a criterion.
        seconds: to choose the mask and to solve, without calibration. Scores that are compared over all layers are
            selected at once: there it is an even share of the whole.
        notes: what the user should know of.
        repaired: where the decoder layer was repaired, the squared distance of its output from that of the dense one,
            as a share of the square, in the first pass over the windows and in the last.
    """

    name: str
    weights: int
    sparsity: float
    error: float | None
    damping: float | None
    seconds: float
    notes: tuple[str, ...] = ()
    repaired: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class OneShotResult:
    """What one-shot pruning did; the model itself holds the weights.

    Attributes:
        masks: parameter name -> bool [out, in] on the CPU, True = kept, in the order of the views.
        rows: one per layer, in the order in which they were pruned.
        tokens: calibration tokens that were used; 0 for a method that uses weights only.
        seconds: of it all, calibration included.
        notes: about the run as a whole; those of layers are in the rows.
    """

    masks: Mapping[str, Tensor]
    rows: tuple[LayerRow, ...]
    tokens: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """How many weights the pruned layers have."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """The share of them that is pruned, counted from the masks."""
        kept = sum(int(torch.count_nonzero(mask)) for mask in self.masks.values())
        return 1 - kept / self.weights
