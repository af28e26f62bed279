"""What criteria learn from the gradients of a training run, gathered once an optimizer step."""

from collections.abc import Callable, Mapping
from operator import attrgetter

import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.lm.views import WeightView
from prunegpt.pruning.criteria.movement import movement_increment

GATHERED = frozenset({"gradient", "movement", "squared_gradient"})
_MEANS = frozenset({"gradient", "squared_gradient"})  # over the steps of a window; movement is a sum over all steps


class GatheredGradients:
    """Sums over optimizer steps, one float32 tensor a weight matrix and statistic.

    `movement` is summed from the first step on. `gradient` and `squared_gradient` are means over a window, which
    :meth:`close_window` ends: the weights have changed by then, and old gradients belong to another model. A closed
    window still answers until the next one has its first step.

    Args:
        views: parameter name -> weights.
        needs: which statistics to gather, of :data:`GATHERED`.
        weights: the weights [out, in] that move, which a model may show less of.
    """

    def __init__(
        self,
        views: Mapping[str, WeightView],
        needs: frozenset[str],
        weights: Callable[[WeightView], Tensor] = attrgetter("matrix"),
    ) -> None:
        self._views = dict(views)
        self._weights = weights
        self._needs = sorted(needs & GATHERED)
        self._sums = {
            (need, name): torch.zeros_like(view.matrix, dtype=torch.float32)  # [out, in]
            for need in self._needs
            for name, view in self._views.items()
        }
        self._steps = 0  # in the window
        self._closed = False

    @torch.no_grad()
    def accumulate(self, gradients: Mapping[str, Tensor] | None = None, *, scale: float = 1.0) -> None:
        """Adds one optimizer step: after its last backward pass, before its weights change.

        With a scaled loss, a step whose gradients overflow is left out: the optimizer does not take it either.

        Args:
            gradients: parameter name -> [out, in], of the whole batch; None = those the parameters hold.
            scale: what the loss was multiplied by, as a gradient scaler does for float16.

        Raises:
            PruningError: a weight has no gradient.
        """
        if not self._needs:
            return
        found: dict[str, Tensor] = {}
        for name, view in self._views.items():
            gradient = view.gradient if gradients is None else gradients.get(name)
            if gradient is None:
                raise PruningError(
                    f"criteria that use gradients need one of every pruned weight; {name} has none. Call accumulate "
                    "between backward and the optimizer step, and do not freeze pruned weights."
                )
            found[name] = gradient if scale == 1.0 else gradient.float() / scale  # [out, in]
        if scale != 1.0 and not all(bool(gradient.isfinite().all()) for gradient in found.values()):
            return
        if self._closed:
            for (need, _), total in self._sums.items():
                if need in _MEANS:
                    total.zero_()
            self._steps, self._closed = 0, False
        for name, gradient in found.items():
            view = self._views[name]
            for need in self._needs:
                total = self._sums[need, name].to(gradient.device)  # [out, in]
                if need == "movement":
                    total += movement_increment(self._weights(view), gradient)
                elif need == "gradient":
                    total += gradient
                else:
                    total += gradient.float().square()
                self._sums[need, name] = total
        self._steps += 1

    def of(self, name: str) -> dict[str, Tensor]:
        """The statistics of one weight matrix: need -> float32 [out, in], whole.

        Raises:
            PruningError: no step was gathered yet.
        """
        if self._needs and not self._steps:
            raise PruningError(
                f"{' and '.join(self._needs)} must be gathered over at least one optimizer step before they choose "
                "masks; none was. Let the schedule start later, or with a sparsity of 0."
            )
        sums = {need: self._views[name].whole(self._sums[need, name]) for need in self._needs}
        return {need: total / self._steps if need in _MEANS else total for need, total in sums.items()}

    def split(self) -> None:
        """Keeps our part of every sum: once the parameters of the views are sharded."""
        self._sums = {(need, name): self._views[name].part(total).clone() for (need, name), total in self._sums.items()}

    def close_window(self) -> None:
        """The masks have been chosen: the next step starts new means."""
        self._closed = True

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, whole, and the window, for a checkpoint."""
        whole = {(need, name): self._views[name].whole(total) for (need, name), total in self._sums.items()}
        state = {f"{need}/{name}": total.cpu().contiguous() for (need, name), total in whole.items()}
        return {**state, "window": torch.tensor([self._steps, int(self._closed)])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            PruningError: the state is of other weights or other statistics.
        """
        wanted = {f"{need}/{name}" for need, name in self._sums} | {"window"}
        if wanted != set(state):
            raise PruningError(
                f"gathered gradients must be of the weights and statistics of this run; {min(wanted ^ set(state))!r} "
                "is on one side only. Resume with the criterion and targets of before."
            )
        for (need, name), total in self._sums.items():
            total.copy_(self._views[name].part(state[f"{need}/{name}"]))
        self._steps, self._closed = int(state["window"][0]), bool(state["window"][1])
