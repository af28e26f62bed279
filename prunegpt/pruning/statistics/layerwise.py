"""Gradients of the loss one decoder layer at a time: those of a pass of the whole model, in the memory of a layer.

On the way forward the hidden states in front of every layer go to a folder. The loss gives the gradient of the last
ones. On the way back each layer is run again from its own, window by window, which gives the gradients of its weights
and those of the states in front of it: what the layer before is given.
"""

import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunegpt.lm.views import WeightView, decoder_lists
from prunegpt.pruning.statistics.activations import FEW, WalkError, capture, far, first_of
from prunegpt.pruning.statistics.collect import by_layer
from prunegpt.pruning.statistics.gradients import (
    Gathered,
    GradientStatistics,
    gradient_statistics,
    loss_of,
    mapped,
    wanting,
)
from prunegpt.root import publishing, seal, whole

_STATES, _UPSTREAM = "states", "upstream"


def layer_gradients(
    model: nn.Module,
    views: Mapping[str, WeightView],
    windows: Tensor,
    folder: Path,
    *,
    samples: Path | None = None,
    kept: bool = False,
    place: torch.device | None = None,
    solved: Container[str] = (),
    calibrated: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[Mapping[str, GradientStatistics | None]]:
    """What :func:`gradient_statistics` gives, of the layers of one decoder layer after the other, the last one first.

    All of it is of the model as it is when the first item is asked for; the caller may prune the layers of an item
    before it asks for the next one. Decoder layers are run on one window at a time, as in a pass of the whole model,
    and give the same bits on a CPU, unless one adds up more than two gradients of its input, which may be in another
    order (rounding: 1e-6 of the largest in float32).

    Args:
        model: a causal language model in evaluation mode.
        views: the layers. Those outside the decoder layers, and those that several share, are the last item, and cost
            a pass of the whole model.
        windows: token ids, int64 [windows, length], length at least 2.
        folder: for the hidden states in front of each decoder layer and for means, which are tensors in files there.
        samples: a folder for single gradients, of one item at a time, while means are on the device; None = none.
        kept: whether an earlier call may have left the folder: what is done of the same pass is not done again, but
            where there are `samples` for layers that are not `solved`.
        place: where decoder layers are run, one at a time, if not where the model is; each is there when it is handed
            out. The rest of the model is there while losses are computed.
        solved: layers of which no single gradients are wanted.
        calibrated: called with the passes of a window through a decoder layer that are done, and their number: those
            before the first item with `samples`, else all.

    Yields:
        layer name -> statistics; None for all of an item of which all are solved.

    Raises:
        WalkError: the decoder layers cannot be run by themselves.
        PruningError: a loss is not finite.
        Interrupted: `calibrated` said so.
    """
    by_block, outside = by_layer(views)
    blocks, *further = decoder_lists(model).values()
    if further or not by_block:
        raise WalkError("decoder layers are in one list, and there are matrices in it.")
    walk = _Walk(model, blocks, windows, folder, by_block, samples, kept, place, calibrated)
    return walk.items(outside, solved)


class _Walk:
    """One pass forward and one back; arguments are those of :func:`layer_gradients`."""

    def __init__(
        self,
        model: nn.Module,
        blocks: nn.ModuleList,
        windows: Tensor,
        folder: Path,
        by_block: Mapping[int, Mapping[str, WeightView]],
        samples: Path | None,
        kept: bool,
        place: torch.device | None,
        calibrated: Callable[[int, int], None],
    ) -> None:
        self._model, self._blocks, self._windows, self._by_block = model, blocks, windows, by_block
        self._folder, self._samples, self._kept, self._calibrated = folder, samples, kept, calibrated
        self._first, self._count = min(by_block), len(blocks)
        self._home = next(model.parameters()).device
        self._place = place or self._home
        parameter = next(iter(by_block[self._first].values())).parameter
        self._mixed = _verified(model, blocks, parameter, self._first, windows[:1, :FEW].to(self._home))
        self._states = capture(model, blocks, windows, micro_batch=1, place=place)
        self._done = 0  # passes of a window through a layer
        self._passes = len(windows) * (self._count + 1 + (0 if samples else self._count - self._first))

    def items(
        self, outside: Mapping[str, WeightView], solved: Container[str]
    ) -> Iterator[Mapping[str, GradientStatistics | None]]:
        reached = self._reached(solved)
        if reached is None:
            reached = self._count
            self._forward()
            self._losses()
        elif reached > self._first:
            upstream = self._file(self._path(reached) / _UPSTREAM, new=False)  # [windows, 1, length, width]
            for window in range(len(self._windows)):
                self._states.put(window, upstream[window].clone())
        self._done = len(self._windows) * (self._count + 1 + self._count - reached)
        apart = None
        if outside and not self._over(outside, solved):  # while all of the model is as it was
            samples = self._samples and self._samples.with_name(f"{self._samples.name}-outside")
            apart = gradient_statistics(self._model, outside, self._windows, samples=samples)
        for index in reversed(range(self._first, self._count)):
            layers = self._by_block.get(index, {})
            over = self._over(layers, solved)
            if index >= reached or (over and index == self._first):
                yield dict.fromkeys(layers, None if self._samples else self._means(self._path(index), layers))
                continue
            with self._states.resident(index):
                found: GradientStatistics | None = self._back(index, {} if over else layers)
                if self._samples is None:
                    found = self._put(index, layers, found)
                yield dict.fromkeys(layers, None if over else found)
                del found
            self._clear()
            if self._samples and (not self._kept or self._over(layers, solved)):
                self._put(index)
        if outside:
            yield dict.fromkeys(outside, apart)

    def _over(self, layers: Mapping[str, WeightView], solved: Container[str]) -> bool:
        return self._samples is not None and all(name in solved for name in layers)

    @torch.no_grad()
    def _forward(self) -> None:
        """Writes the hidden states in front of each decoder layer; those after the last one are held."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for index in range(self._count):
            with self._states.resident(index), self._making(index) as made, _autocast(self._place.type, self._mixed):
                if index >= self._first:
                    file = self._file(made / _STATES, new=True)
                    for window, states in enumerate(self._states.held):
                        file[window].copy_(states)
                self._states.run(index, keep=True, after_batch=self._tick)

    @torch.enable_grad()
    def _losses(self) -> None:
        """Puts the gradient of the loss in place of the hidden states after the last decoder layer."""
        with _around(self._model, self._blocks, self._place), wanting(self._model, ()):
            for number, window in enumerate(self._windows.to(self._place)):
                last = self._states.states(number).detach().requires_grad_()  # [1, length, width]
                with self._states.instead(last):
                    (gradient,) = torch.autograd.grad(loss_of(self._model, window, number), last)
                self._states.put(number, gradient)
                self._tick()
        if self._kept:
            self._put(self._count)

    @torch.enable_grad()
    def _back(self, index: int, layers: Mapping[str, WeightView]) -> GradientStatistics:
        """The gradients of a decoder layer; those of the states in front of it take the place of those behind it."""
        found = Gathered(layers, self._windows, self._samples)
        states = self._file(self._path(index) / _STATES, new=False)  # [windows, 1, length, width]
        below = index > self._first
        with wanting(self._model, found.parameters):
            for window in range(len(self._windows)):
                hidden = states[window].to(self._place, copy=True).requires_grad_(below)  # [1, length, width]
                with _autocast(self._place.type, self._mixed):
                    output = self._states.after(index, window, hidden)
                given = [*found.parameters, *([hidden] if below else [])]
                upward = self._states.states(window)  # [1, length, width]
                gradients = [*torch.autograd.grad(output, given, upward, materialize_grads=True)]
                del output
                if below:
                    self._states.put(window, gradients.pop())
                found.add(window, gradients)
                del gradients
                if self._samples is None:
                    self._tick()
        return found.statistics()

    def _put(
        self, index: int, layers: Mapping[str, WeightView] | None = None, found: GradientStatistics | None = None
    ) -> GradientStatistics | None:
        """Puts the gradient of the states in front of a decoder layer, and means, in place of these states."""
        with self._making(index) as made:
            if self._kept and index > self._first:
                upstream = self._file(made / _UPSTREAM, new=True)  # [windows, 1, length, width]
                for window, gradient in enumerate(self._states.held):
                    upstream[window].copy_(gradient)
            return found and self._means(made, layers or {}, found)

    def _means(
        self, folder: Path, layers: Mapping[str, WeightView], found: GradientStatistics | None = None
    ) -> GradientStatistics:
        """Means as tensors in files, which are written where they are `found`."""
        filed: dict[str, dict[str, Tensor]] = {"gradient": {}, "squared_gradient": {}}
        for kind, of_kind in filed.items():
            for place, (name, view) in enumerate(layers.items()):
                file, shape = folder / f"{kind}-{place:05d}", view.matrix.shape
                of_kind[name] = mapped(file, shape, torch.float32, new=found is not None)  # [out, in]
                if found:
                    of_kind[name].copy_(getattr(found, kind)[name])
        return GradientStatistics(**filed, single=None, windows=len(self._windows), tokens=self._windows.numel())

    def _clear(self) -> None:
        """Removes single gradients, which the next item takes the place of."""
        if self._samples:
            shutil.rmtree(self._samples, ignore_errors=True)

    def _reached(self, solved: Container[str]) -> int | None:
        """Where the gradient that an earlier call has kept is: in front of which decoder layer; None = nowhere.

        It is of no use without single gradients of the layers behind it, unless these are solved.
        """
        reached = None
        for index in range(self._first, self._count + 1) if self._kept else ():
            if not whole(self._path(index), deep=True):
                return None
            if reached is None and not (self._path(index) / _STATES).exists():
                reached = index
            behind = self._by_block.get(index, {}) if reached is not None and self._samples else {}
            if not all(name in solved for name in behind):
                return None
        return reached

    def _path(self, index: int) -> Path:
        return self._folder / f"layer-{index:04d}"

    @contextmanager
    def _making(self, index: int) -> Iterator[Path]:
        """A folder that takes the place of what there is of a decoder layer."""
        if self._kept:
            with publishing(self._path(index), replace=True) as made:
                yield made
                seal(made)
            return
        shutil.rmtree(self._path(index), ignore_errors=True)
        self._path(index).mkdir(parents=True)
        yield self._path(index)

    def _file(self, file: Path, *, new: bool) -> Tensor:
        """Hidden states of all windows, or their gradients, as a file, [windows, 1, length, width]."""
        one = self._states.held[0]
        return mapped(file, (len(self._windows), *one.shape), one.dtype, new=new)

    def _tick(self) -> None:
        self._done += 1
        self._calibrated(self._done, self._passes)


def _verified(
    model: nn.Module, blocks: nn.ModuleList, parameter: Tensor, first: int, tokens: Tensor
) -> torch.dtype | None:
    """Sees that gradients walk back from layer to layer as hidden states walk forward.

    On a few tokens the gradient of what each layer gives is compared with that of a pass of the whole model. They
    differ where more than hidden states goes from one layer to another, as keys and values that several share.

    Args:
        parameter: of the first layer whose gradients are wanted, which is `first`.
        tokens: int64 [1, length].

    Returns:
        The dtype of the autocast that the model runs its layers in; None = none.

    Raises:
        WalkError: they do not.
    """
    few = capture(model, blocks, tokens, micro_batch=1)
    forms = {(few.held[0].shape, few.held[0].dtype)}
    outputs: list[Tensor] = []
    mixed: list[torch.dtype | None] = []
    kind = tokens.device.type

    def note(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(first_of(output))
        mixed.append(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)

    with wanting(model, [parameter]), torch.enable_grad():
        handles = [block.register_forward_hook(note) for block in blocks]
        try:
            loss = loss_of(model, tokens[0], 0)
        finally:
            for handle in handles:
                handle.remove()
        forms |= {(output.shape, output.dtype) for output in outputs}
        wanted = torch.autograd.grad(loss, outputs[first:], materialize_grads=True)
        for index, upward in enumerate(wanted, first):
            hidden = outputs[index].detach().requires_grad_()  # [1, length, width]
            if index + 1 == len(blocks):
                with few.instead(hidden):
                    (gradient,) = torch.autograd.grad(loss_of(model, tokens[0], 0), hidden)
            else:
                with _autocast(kind, mixed[0]):
                    output = few.after(index + 1, 0, hidden)
                (gradient,) = torch.autograd.grad(output, hidden, wanted[index + 1 - first])
            if far(gradient, upward):
                raise WalkError(
                    "the gradient of hidden states must be what the next decoder layer gives back; that of "
                    f"{type(model).__name__} is not: its layers hand on more than hidden states."
                )
    if len(forms) > 1:
        raise WalkError(f"hidden states must have one shape and dtype in front of all decoder layers, got {forms}.")
    return mixed[0]


def _autocast(kind: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return torch.autocast(kind, dtype) if dtype else nullcontext()


@contextmanager
def _around(model: nn.Module, blocks: nn.ModuleList, place: torch.device) -> Iterator[None]:
    """All of a model but its decoder layers is on a device while the context lasts."""
    home = next(model.parameters()).device
    outer = [module for module in model.modules() if any(one is blocks for one in module.modules())]

    def move(device: torch.device) -> None:
        for module in outer:
            if module is not blocks:
                module._apply(lambda tensor: tensor.to(device), recurse=False)  # type: ignore[no-untyped-call]
                for child in module.children():
                    if not any(child is one for one in outer):
                        child.to(device)

    if home == place:
        yield
        return
    move(place)
    try:
        yield
    finally:
        move(home)
