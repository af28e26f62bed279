"""One calibration pass: the statistics of every layer, block by block."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunegpt.errors import StreamingError
from prunegpt.lm.modes import evaluation_mode
from prunegpt.lm.views import WeightView, decoder_lists
from prunegpt.pruning.statistics.activations import (
    StopForward,
    WalkError,
    capture,
    micro_batch_of,
)
from prunegpt.pruning.statistics.inputs import InputCollector, LayerStatistics
from prunegpt.pruning.statistics.regional import RegionalGradients

_Run = Callable[..., None]  # called with what is to be called after each micro-batch, as `after_batch`


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and its experts one after the other, while the context lasts."""
    switch: Any = model if isinstance(model, PreTrainedModel) else None
    experts = switch and switch.get_experts_implementation()
    if switch:
        switch.set_experts_implementation("eager")  # each is multiplied by for itself, and not in one grouped product
    try:
        with evaluation_mode(model):
            yield
    finally:
        if switch:
            switch.set_experts_implementation(experts)


def by_layer(views: Mapping[str, WeightView]) -> tuple[dict[int, dict[str, WeightView]], dict[str, WeightView]]:
    """The matrices of each decoder layer, and those that are in none or that several layers share."""
    outside = {name: view for name, view in views.items() if view.block is None or view.shared}
    by_block: dict[int, dict[str, WeightView]] = {}
    for name, view in views.items():
        if view.block is not None and name not in outside:
            by_block.setdefault(view.block, {})[name] = view
    return by_block, outside


@torch.no_grad()
def block_statistics(
    model: nn.Module,
    views: Mapping[str, WeightView],
    windows: Tensor,
    *,
    gram: bool,
    propagate: bool,
    regional: bool = False,
    micro_batch: int | None = None,
    offload: bool | None = None,
    solved: Container[str] = (),
    place: torch.device | None = None,
) -> Iterator[Mapping[str, LayerStatistics | None]]:
    """The statistics of the layers, one decoder layer after the other, as a generator.

    The caller may prune the layers of an item before it asks for the next one. With `propagate` the following blocks
    are then given what the pruned block makes of its input, otherwise what the dense one made.

    Where the blocks can be run one after the other by themselves, all of it costs about two passes of the model. Those
    that hand on more than hidden states, or are called in a loop, are seen in passes of the whole model instead: one
    for each block with `propagate`.

    Args:
        model: a causal language model in evaluation mode.
        views: the layers. Those outside the blocks, such as the head, and those that several blocks share
            are the last item, and cost a pass of the whole model.
        windows: token ids, int64 [windows, length].
        gram: whether XᵀX is wanted, and not only norms.
        propagate: whether each layer is calibrated on the outputs of the (pruned) layers before it.
        regional: whether regional gradients are wanted. Windows are run one at a time then, as each has a gradient of
            its own, and layers that are outside the blocks have none.
        micro_batch: windows at a time; None = by the number of tokens. Changes results by rounding only.
        offload: whether hidden states are held on the CPU; None = where the model is on an accelerator.
        solved: layers that an earlier attempt has pruned, whose weights the caller writes into the model when their
            block is handed out. A block of which all are solved costs no statistics.
        place: where blocks are run, one at a time, if not where the model is; each is there when it is handed out.

    Yields:
        layer name -> statistics, of one block; None for all layers of one that is solved.

    Raises:
        PruningError: a layer is never reached, or its inputs are not activations.
    """
    collect = partial(_collect, model, gram=gram, regional=regional)
    micro_batch = 1 if regional else micro_batch
    by_block, outside = by_layer(views)
    last = max(by_block, default=-1)
    states = None
    blocks, *further = decoder_lists(model).values()
    if by_block and not further:
        with suppress(WalkError):
            states = capture(model, blocks, windows, micro_batch=micro_batch, offload=offload, place=place)
    if states is None and place is not None:
        raise unstreamable(model)
    if states is None:
        groups = [*(by_block[index] for index in sorted(by_block)), outside] if propagate else [views]
        for layers in filter(None, groups):
            if all(name in solved for name in layers):
                yield dict.fromkeys(layers)
            else:
                yield collect(layers, _whole_model(model, windows, micro_batch))
        return

    dense = {}
    over = all(name in solved for name in outside)
    if (
        outside and not propagate and not over
    ):  # before any block is pruned; handed out last, as blocks are still to be run dense
        dense = collect(outside, _whole_model(model, windows, micro_batch))
    for index in range(last + 1):
        layers = by_block.get(index, {})
        with states.resident(index):
            if layers and all(name in solved for name in layers):
                if not propagate and index < last:
                    states.run(index, keep=True)
                yield dict.fromkeys(layers)
            elif layers:
                keep = not propagate and index < last
                yield collect(layers, partial(states.run, index, keep=keep), last=propagate or index == last)
            if index < last and (propagate or not layers):
                states.run(index, keep=True)
    if outside and over:
        yield dict.fromkeys(outside)
    elif outside:
        yield dense or collect(outside, _whole_model(model, windows, micro_batch))


def unstreamable(model: nn.Module) -> StreamingError:
    return StreamingError(
        f"layers are streamed one after the other; those of {type(model).__name__} cannot be run by themselves. "
        "Prune it where the whole model fits, without streaming."
    )


def _collect(
    model: nn.Module,
    layers: Mapping[str, WeightView],
    run: _Run,
    *,
    gram: bool,
    regional: bool,
    last: bool = True,
) -> dict[str, LayerStatistics]:
    """The statistics of some layers; the sums that they are made of, which are as large, are gone then.

    Args:
        run: runs all windows.
        last: whether nothing more is wanted of a pass once every layer has seen its inputs.
    """
    collector = InputCollector(layers, gram=gram, stop_early=last and not regional)
    with collector.attached():
        if not regional:
            run(after_batch=collector.end_batch)
            return collector.results()
        gradients = RegionalGradients(model, layers)
        with gradients.attached():
            run(after_batch=collector.end_batch)
    found = gradients.results()
    return {name: replace(one, regional_gradient=found[name]) for name, one in collector.results().items()}


def _whole_model(model: nn.Module, windows: Tensor, micro_batch: int | None) -> _Run:
    """Passes of the model, each broken off where nothing more is to be seen."""
    device = next(model.parameters()).device

    def run(*, after_batch: Callable[[], None]) -> None:
        for part in torch.split(windows, micro_batch_of(windows, device, micro_batch)):
            with suppress(StopForward):
                model(input_ids=part.to(device), use_cache=False)
            after_batch()

    return run
