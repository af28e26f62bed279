"""Keeps pruned weights at zero while a model trains, without hooks in its forward pass.

Weights are stored pruned. An optimizer step is wrapped by two passes: gradients are masked before clipping, so that
norms and moments see live weights only, and weights are masked after the step, whatever momentum and weight decay did
to them.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from prunegpt.errors import PruningError, nearest
from prunegpt.lm.views import WeightView
from prunegpt.pruning.bits import apply_bits, mask_bits
from prunegpt.pruning.masks import check, one_per_storage, pack, unpack

_LISTED = 3  # nearest names shown in one message


class HasState(Protocol):
    """An optimizer, or a wrapper that shows the state of one."""

    @property
    def state(self) -> Mapping[nn.Parameter, Mapping[str, object]]: ...


class Enforcer:
    """The masks of a model in training.

    Masks are kept in the orientation of the parameters, one byte a weight; a tensor that nothing is pruned of costs
    nothing. Tensors that share storage have one mask, under the first of their names.

    Args:
        views: parameter name -> the weights that may be pruned.
        masks: parameter name -> bool [out, in], True = kept; a name that is missing is all kept. The weights are not
            touched before :meth:`mask_weights`.

    Raises:
        PruningError: a mask belongs to no view, or has another shape than its weight.
    """

    def __init__(self, views: Mapping[str, WeightView], masks: Mapping[str, Tensor] | None = None) -> None:
        self._views = one_per_storage(views)
        self._bits: dict[str, Tensor] = {}  # name -> int8 in the parameter's orientation
        self.set_masks(masks or {})

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool [out, in], for every view."""
        return {name: self._mask(name) for name in self._views}

    def set_masks(self, masks: Mapping[str, Tensor], optimizer: HasState | None = None) -> None:
        """Replaces masks, and zeroes the optimizer's moments of every weight that is not kept before and after.

        A weight that closes leaves no momentum behind, and one that opens again starts from none. Moments are the state
        tensors with the shape of their parameter, as Adam, AdamW and SGD keep; factored ones are left alone.

        Args:
            masks: parameter name -> bool [out, in], True = kept. Names that are missing keep the mask they have.
            optimizer: whose moments are reset; None where it has not stepped yet.

        Raises:
            PruningError: a mask belongs to no view, or has another shape than its weight.
        """
        for name, mask in masks.items():
            view = self._view(name)
            parameter = view.parameter
            if mask.shape != view.matrix.shape:
                raise PruningError(
                    f"a mask must have the shape of its weight, but {name} is {list(view.matrix.shape)} and its mask "
                    f"{list(mask.shape)} ([out, in]). Transpose it, or use the masks of this model."
                )
            oriented = (mask.t() if view.transposed else mask).to(parameter.device)  # as the parameter
            bits = mask_bits(oriented.contiguous())
            before = self._bits.pop(name, None)
            live = bits if before is None else bits & before.to(bits.device)
            if not bool(oriented.all()):
                self._bits[name] = bits
            for moments in _moments(parameter, optimizer):
                apply_bits(moments, live.to(moments.device))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zeroes the gradients of pruned weights: after the last backward pass of a step, before clipping."""
        for name, bits in self._bits.items():
            gradient = self._views[name].parameter.grad
            if gradient is not None:
                apply_bits(gradient, self._on(name, bits, gradient))

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Zeroes pruned weights: after every optimizer step."""
        for name, bits in self._bits.items():
            weight = self._views[name].parameter.data
            apply_bits(weight, self._on(name, bits, weight))

    def verify(self) -> None:
        """Looks that every pruned weight is zero.

        Raises:
            MaskDriftError: one is not; the tensor is named.
        """
        check(self._views, {name: self._mask(name) for name in self._bits})

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, packed (:func:`prunegpt.pruning.masks.pack`), of the tensors that something is pruned of."""
        return {name: pack(self._mask(name)) for name in self._bits}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back the masks of :meth:`state_dict`. Weights and moments are left as the checkpoint has them.

        Raises:
            PruningError: a mask belongs to no view, or has another shape than its weight.
        """
        self._bits = {}
        self.set_masks({name: unpack(bits, self._view(name).matrix.shape[1]) for name, bits in state.items()})

    def _view(self, name: str) -> WeightView:
        if name not in self._views:
            raise PruningError(
                f"every mask must belong to a weight that is pruned, but {name!r} is none of them. "
                f"Nearest: {', '.join(nearest(name, self._views)[:_LISTED])}."
            )
        return self._views[name]

    def _mask(self, name: str) -> Tensor:
        view = self._views[name]
        if name not in self._bits:
            return torch.ones_like(view.matrix, dtype=torch.bool)  # [out, in]
        mask = self._bits[name].bool()
        return mask.t() if view.transposed else mask  # [out, in]

    def _on(self, name: str, bits: Tensor, tensor: Tensor) -> Tensor:
        if bits.device != tensor.device:  # the model was moved since
            self._bits[name] = bits = bits.to(tensor.device)
        return bits


def _moments(parameter: nn.Parameter, optimizer: HasState | None) -> Iterable[Tensor]:
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            yield value
