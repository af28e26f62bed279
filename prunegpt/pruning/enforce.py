"""How masks live in training, without hooks in a model's forward pass: the usual mode, where pruned weights are zero.

Weights are stored pruned. An optimizer step is wrapped by two passes: gradients are masked before clipping, so that
norms and moments see live weights only, and weights are masked after the step, whatever momentum and weight decay did
to them. Other modes (`prunegpt.pruning.modes`) keep more of a weight than its mask shows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from prunegpt.errors import PruningError, nearest
from prunegpt.lm import ranks
from prunegpt.lm.views import WeightView
from prunegpt.pruning.mask import Mask, Masks
from prunegpt.pruning.masks import check, one_per_storage
from prunegpt.pruning.patterns import Pattern
from prunegpt.pruning.selection import Scope, select_masks

_LISTED = 3  # nearest names shown in one message


class HasState(Protocol):
    """An optimizer, or a wrapper that shows the state of one."""

    @property
    def state(self) -> Mapping[nn.Parameter, Mapping[str, object]]: ...


class Enforcer:
    """The masks of a model in training: mode `projected`, and what other modes have in common.

    A tensor that nothing is pruned of costs nothing. Tensors that share storage have one mask, under the first of their
    names.

    For each optimizer step a trainer calls :meth:`mask_gradients` after the last backward pass,
    :meth:`before_optimizer` after clipping, and :meth:`mask_weights` after the optimizer. Whoever chooses masks asks
    :meth:`scored` for weights and :meth:`select` for masks, and hands them to :meth:`update`.

    Where each process has a part of every weight, it holds that part of every mask. Whole are the masks that
    :attr:`masks` gives and :meth:`set_masks` takes, what :meth:`select` is given and gives, and states.

    Args:
        views: parameter name -> the weights that may be pruned.
        masks: by parameter name; a name that is missing is all kept. The weights are not touched before
            :meth:`mask_weights`.
        moving: names of the weights whose masks are chosen in this training.

    Raises:
        PruningError: a mask belongs to no view, or has another shape than its weight.
    """

    needs: ClassVar[frozenset[str]] = frozenset()  # what `select` is given of what training has shown

    def __init__(
        self, views: Mapping[str, WeightView], masks: Mapping[str, Mask] | None = None, *, moving: Iterable[str] = ()
    ) -> None:
        self.views = one_per_storage(views)
        self._masks: Masks = {}  # of the tensors that something is pruned of
        self.set_masks(masks or {})
        self._held = self.closed  # by earlier stages: never opens
        self._moving = tuple(moving)

    @property
    def masks(self) -> Masks:
        """The mask of every view, whole: where they are sharded, all processes ask for it together."""
        found = {name: self.mask(name) for name in self.views}
        if not self.sharded:
            return found
        return {name: Mask(self.views[name].whole(mask.kept).cpu()) for name, mask in found.items()}

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of every weight."""
        return any(view.sharded for view in self.views.values())

    @property
    def held(self) -> Masks:
        """What earlier stages pruned, which never opens."""
        return dict(self._held)

    @property
    def closed(self) -> Masks:
        """The masks of the tensors that something is pruned of."""
        return dict(self._masks)

    @property
    def chosen(self) -> Masks:
        """The masks that were chosen last, of the tensors that something is pruned of, whether weights obey or not."""
        return self.closed

    def mask(self, name: str) -> Mask:
        """The mask of one view."""
        found = self._masks.get(name)
        return found or Mask(torch.ones_like(self.views[name].matrix, dtype=torch.bool))  # [out, in]

    def set_masks(self, masks: Mapping[str, Mask], optimizer: HasState | None = None) -> None:
        """Replaces masks, and zeroes the optimizer's moments of every weight that is not kept before and after.

        A weight that closes leaves no momentum behind, and one that opens again starts from none. Moments are the state
        tensors with the shape of their parameter, as Adam, AdamW and SGD keep; factored ones are left alone.

        Args:
            masks: by parameter name. Names that are missing keep the mask they have.
            optimizer: whose moments are reset; None where it has not stepped yet.

        Raises:
            PruningError: a mask belongs to no view, or has another shape than its weight.
        """
        self._replace(self._parts(masks), optimizer)
        self.settle()

    def split(self) -> None:
        """Keeps our part of every mask: once the parameters of the views are sharded, before the first step."""
        self._masks, self._held = self._parts(self._masks), self._parts(self._held)

    def join(self, masks: Mapping[str, Mask]) -> None:
        """Takes whole masks: once the views are of a whole model again, after the last step."""
        self._masks = {}
        self.set_masks(masks)

    def settle(self) -> None:
        """Drops masks that prune nothing: after :meth:`update`, which does not wait for a device to count them."""
        Mask.count(self._masks.values())
        pruned = self.summed([mask.pruned for mask in self._masks.values()])
        self._masks = {name: mask for (name, mask), count in zip(self._masks.items(), pruned, strict=True) if count}

    def summed(self, counts: Sequence[float]) -> list[float]:
        """Sums over the parts of all processes, which all call this; the same numbers where each has all."""
        return ranks.total(counts) if self.sharded else list(counts)

    def _parts(self, masks: Mapping[str, Mask]) -> Masks:
        """Our parts of whole masks."""
        if not self.sharded:
            return dict(masks)
        views = {name: self._view(name) for name in masks}
        return {name: Mask(view.part(masks[name].kept), like=view.matrix) for name, view in views.items()}

    def _replace(self, masks: Mapping[str, Mask], optimizer: HasState | None) -> None:
        for name, given in masks.items():
            view = self._view(name)
            try:
                mask = given.like(view.matrix)
            except PruningError as error:
                raise PruningError(f"{name}: {error}") from error
            before = self._masks.pop(name, None)
            live = mask if before is None else mask & before
            self._masks[name] = mask
            for moments in _moments(view, optimizer):
                live.apply(moments)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zeroes the gradients of pruned weights: after the last backward pass of a step, before clipping."""
        for name, mask in self._shut.items():
            gradient = self.views[name].gradient
            if gradient is not None:
                mask.apply(gradient)

    def before_optimizer(self, *, scale: float = 1.0) -> None:
        """What a mode does to weights and gradients between clipping and the optimizer.

        Args:
            scale: what gradients are multiplied by still, as a gradient scaler does for float16.
        """

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Zeroes pruned weights: after every optimizer step."""
        for name, mask in self._masks.items():
            mask.apply(self.views[name].matrix)

    def follow(self, progress: float) -> None:
        """Told before each step how far the schedule has come, 0 at its start to 1 at its end."""

    def learning(self, view: WeightView) -> Tensor:
        """The weights that the optimizer moves, [out, in]."""
        return view.matrix

    def scored(self, view: WeightView) -> Tensor:
        """The weights that masks are chosen by, [out, in]."""
        return self.learning(view)

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
        """Masks from scores, as :func:`~prunegpt.pruning.selection.select_masks`; `gathered` has what a mode needs."""
        return select_masks(scores, targets, pattern=pattern, scope=scope, masks=masks)

    @torch.no_grad()
    def update(self, masks: Mapping[str, Mask], optimizer: HasState | None, *, last: bool) -> tuple[str, ...]:
        """Takes newly chosen masks; :meth:`settle` follows once they are counted.

        Args:
            masks: by parameter name.
            optimizer: as :meth:`set_masks`.
            last: whether they are final: from then on every mode keeps pruned weights at zero.

        Returns:
            What the user should know of it.
        """
        self._replace(masks, optimizer)
        self.mask_weights()
        return ()

    def state_dict(self) -> dict[str, Tensor]:
        """What a mode knows beside masks and weights, for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` gave."""

    @property
    def _shut(self) -> Masks:
        """What takes no gradient: the masks, unless a mode lets pruned weights learn."""
        return self._masks

    def verify(self) -> None:
        """Looks that every pruned weight is zero.

        Raises:
            MaskDriftError: one is not; the tensor is named.
        """
        check(self.views, self._masks)

    def _view(self, name: str) -> WeightView:
        if name not in self.views:
            raise PruningError(
                f"every mask must belong to a weight that is pruned; {name!r} is none of them. Nearest: "
                f"{', '.join(nearest(name, self.views)[:_LISTED])}."
            )
        return self.views[name]


def _moments(view: WeightView, optimizer: HasState | None) -> Iterable[Tensor]:
    """The optimizer's state tensors of the parameter's shape, [out, in]: numbers, and not codes of fewer bits."""
    state = optimizer.state.get(view.parameter, {}) if optimizer is not None else {}
    for value in state.values():
        if isinstance(value, Tensor) and value.is_floating_point() and value.shape == view.parameter.shape:
            yield view.oriented(value)
