"""One calibration pass: the statistics of every layer, block by block."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunegpt.lm.views import WeightView, decoder_blocks
from prunegpt.pruning.statistics.activations import WalkError, capture, micro_batch_of
from prunegpt.pruning.statistics.inputs import InputCollector, LayerStatistics


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and its experts one after the other, while the context lasts."""
    training = {module for module in model.modules() if module.training}
    model.eval()
    switch: Any = model if isinstance(model, PreTrainedModel) else None
    experts = switch and switch.get_experts_implementation()
    if switch:
        switch.set_experts_implementation("eager")  # each is multiplied by for itself, and not in one grouped product
    try:
        yield
    finally:
        if switch:
            switch.set_experts_implementation(experts)
        for module in training:
            module.training = True


@torch.no_grad()
def block_statistics(
    model: nn.Module,
    views: Mapping[str, WeightView],
    windows: Tensor,
    *,
    gram: bool,
    propagate: bool,
    micro_batch: int | None = None,
    offload: bool | None = None,
) -> Iterator[dict[str, LayerStatistics]]:
    """The statistics of the layers, one decoder layer after the other, as a generator.

    The caller may prune the layers of an item before it asks for the next one. With `propagate` the following blocks
    are then given what the pruned block makes of its input, otherwise what the dense one made.

    Args:
        model: a causal language model in evaluation mode.
        views: the layers. Those outside the blocks, such as the head, and those that several blocks share
            are the last item with `propagate` and the first one without, and cost a pass of the whole model.
        windows: token ids, int64 [windows, length].
        gram: whether XᵀX is wanted, and not only norms.
        propagate: whether each layer is calibrated on the outputs of the (pruned) layers before it.
        micro_batch: windows at a time; None = by the number of tokens. Changes results by rounding only.
        offload: whether hidden states are held on the CPU; None = where the model is on an accelerator.

    Yields:
        layer name -> statistics, of one block.

    Raises:
        WalkError: with `propagate`, the blocks of the model cannot be run one after the other. Without, the statistics
            of all layers then come from whole forward passes.
        PruningError: a layer is never reached, or its inputs are not activations.
    """
    _, blocks = decoder_blocks(model)
    outside = {name: view for name, view in views.items() if view.block is None or view.shared}
    by_block: dict[int, dict[str, WeightView]] = {}
    for name, view in views.items():
        if view.block is not None and name not in outside:
            by_block.setdefault(view.block, {})[name] = view
    last = max(by_block, default=-1)
    try:
        states = capture(model, blocks, windows, micro_batch=micro_batch, offload=offload) if by_block else None
    except WalkError:
        if propagate:
            raise
        yield _whole_model(model, views, windows, gram=gram, micro_batch=micro_batch)
        return

    if outside and not propagate:
        yield _whole_model(model, outside, windows, gram=gram, micro_batch=micro_batch)
    for index in range(last + 1):
        assert states is not None
        layers = by_block.get(index, {})
        if layers:
            collector = InputCollector(layers, gram=gram, stop_early=propagate or index == last)
            with collector.attached():
                states.run(index, keep=not propagate and index < last, after_batch=collector.end_batch)
            yield collector.results()
        if index < last and (propagate or not layers):
            states.run(index, keep=True)
    if outside and propagate:
        yield _whole_model(model, outside, windows, gram=gram, micro_batch=micro_batch)


def _whole_model(
    model: nn.Module, views: Mapping[str, WeightView], windows: Tensor, *, gram: bool, micro_batch: int | None
) -> dict[str, LayerStatistics]:
    device = next(model.parameters()).device
    collector = InputCollector(views, gram=gram)
    with collector.attached():
        for part in torch.split(windows, micro_batch_of(windows, device, micro_batch)):
            model(input_ids=part.to(device), use_cache=False)
            collector.end_batch()
    return collector.results()
