"""SparseGPT as the paper has it, column by column: what ours is measured beside.

Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1 and section 4: calibration windows go through a block one at a
time, each layer gathers a Hessian of its own, its columns are pruned one after the other, and the windows go through
the block again. Written from the paper for `torch.nn.Linear`, weights [out, in].
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BLOCK, DAMPING = 128, 0.01


class _Enough(Exception):
    """The inputs of the first block are known; the rest of the pass is not needed."""


@torch.no_grad()
def prune_model(
    model: PreTrainedModel, windows: Tensor, sparsity: float, done: Callable[[int], None] = lambda _: None
) -> None:
    """Prunes every linear layer of every decoder layer in place.

    Args:
        windows: token ids, [windows, length].
        done: is told of each block that is finished.
    """
    blocks = model.get_decoder().layers
    states, given = _first_inputs(model, blocks[0], windows)  # [windows, length, width]
    for number, block in enumerate(blocks):
        layers = {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}
        hessians = {name: _Hessian(layer) for name, layer in layers.items()}
        hooks = [layer.register_forward_hook(hessians[name].add) for name, layer in layers.items()]
        for window in states:
            block(window[None], **given)
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.weight.copy_(prune_layer(layer.weight, hessians[name].total, sparsity))
        for index, window in enumerate(states):
            output = block(window[None], **given)
            states[index] = (output[0] if isinstance(output, tuple) else output).reshape(window.shape)
        done(number)


def prune_layer(weight: Tensor, hessian: Tensor, sparsity: float) -> Tensor:
    """Algorithm 1: the weights [out, in] with `sparsity` of them zero and the others made up for it.

    Args:
        hessian: of the layer's squared error, [in, in].
    """
    weight, hessian = weight.clone().float(), hessian.clone()  # [out, in], [in, in]
    columns = weight.shape[1]
    silent = hessian.diagonal() == 0  # [in]
    hessian[silent, silent] = 1
    weight[:, silent] = 0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))  # [in, in]
    inverse = torch.linalg.cholesky(inverse, upper=True)  # [in, in]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.zeros_like(weight[:, start:end])  # [out, block]
        worth = weight[:, start:end] ** 2 / inverse.diagonal()[start:end] ** 2  # [out, block]
        threshold = worth.flatten().sort().values[int(worth.numel() * sparsity)]
        pruned = worth <= threshold  # [out, block]
        for column in range(start, end):
            kept = torch.where(pruned[:, column - start], 0.0, weight[:, column])  # [out]
            error = (weight[:, column] - kept) / inverse[column, column]  # [out]
            weight[:, column:end] -= error[:, None] @ inverse[column, column:end][None]
            weight[:, column] = kept
            errors[:, column - start] = error
        weight[:, end:] -= errors @ inverse[start:end, end:]
    return weight


class _Hessian:
    """2 X Xᵀ / n of a layer's inputs, gathered window by window."""

    def __init__(self, layer: nn.Linear) -> None:
        self.total = torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device)  # [in, in]
        self.windows = 0

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).float()  # [length, in]
        self.total *= self.windows / (self.windows + 1)
        self.windows += 1
        rows = rows * (2 / self.windows) ** 0.5
        self.total += rows.t() @ rows


def _first_inputs(model: PreTrainedModel, block: nn.Module, windows: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """What the first block is given: hidden states of all windows, and the arguments that are the same for all."""
    states: list[Tensor] = []
    given: dict[str, Any] = {}

    def catch(_: nn.Module, inputs: tuple[Tensor, ...], more: dict[str, Any]) -> None:
        states.append(inputs[0] if inputs else more.pop("hidden_states"))
        given.update(more)
        raise _Enough

    hook = block.register_forward_pre_hook(catch, with_kwargs=True)
    for window in windows:
        try:
            model(window[None].to(model.device), use_cache=False)
        except _Enough:
            continue
    hook.remove()
    return torch.cat(states), given
