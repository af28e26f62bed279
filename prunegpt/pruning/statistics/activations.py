"""Calibration windows on their way through the decoder layers, one block at a time.

Only the hidden states between two blocks are held, so that a block can be run, pruned and run again without the rest of
the model, and the memory does not grow with its depth.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunegpt.errors import PruningError

_TOKENS = 2048  # of a micro-batch on a CPU: activations of a block that stay near its cache
_TOKENS_ACCELERATOR = 16384


FEW = 16  # tokens that show whether a walk through the blocks is right
_CLOSE = {torch.float32: 1e-4, torch.float64: 1e-10}  # differences relative to the largest value
_CLOSE_ROUNDED = 1e-2  # the same of types of few digits


class WalkError(PruningError):
    """The blocks of a model cannot be run one after the other by themselves: it has to be run as a whole."""


class StopForward(Exception):
    """Raised inside a block when the rest of its forward pass is not needed."""


@dataclass(frozen=True)
class _Call:
    """What a block is called with beside the hidden states."""

    args: tuple[Any, ...]  # without the hidden states
    kwargs: dict[str, Any]  # likewise
    by_name: bool  # hidden states come as a keyword

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden states after the block, [windows, length, width]."""
        if self.by_name:
            output = block(*self.args, hidden_states=hidden, **self.kwargs)
        else:
            output = block(hidden, *self.args, **self.kwargs)
        return first_of(output)


class BlockInputs:
    """The hidden states of all windows in front of one block, and how to move them on.

    Made by :func:`capture`.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        hidden: list[Tensor],
        calls: list[list[_Call]],
        offload: bool,
        place: torch.device,
        outputs: list[Any],
    ) -> None:
        self._blocks = blocks
        self._hidden = hidden  # by micro-batch: [windows, length, width]
        self._calls = calls  # by micro-batch, by block
        self._offload = offload
        self._place = place  # where blocks are run
        self._outputs = outputs  # what each block returns of a few tokens

    @property
    def hidden(self) -> Tensor:
        """[windows, length, width], on the CPU."""
        return torch.cat([part.cpu() for part in self._hidden])

    @property
    def held(self) -> Sequence[Tensor]:
        """By micro-batch: [windows, length, width], where they are between two blocks."""
        return self._hidden

    def __len__(self) -> int:
        """The number of micro-batches."""
        return len(self._hidden)

    def copy(self) -> "BlockInputs":
        """The same hidden states, which move on by themselves."""
        return BlockInputs(self._blocks, list(self._hidden), self._calls, self._offload, self._place, self._outputs)

    @contextmanager
    def resident(self, index: int) -> Iterator[None]:
        """Block `index` is on the device where it is run while the context lasts."""
        block = self._blocks[index]
        home = next(block.parameters()).device
        if home == self._place:
            yield
            return
        block.to(self._place)
        try:
            yield
        finally:
            block.to(home)

    def states(self, batch: int) -> Tensor:
        """The hidden states of a micro-batch, [windows, length, width], on the device where blocks are run."""
        return self._hidden[batch].to(self._place)

    def put(self, batch: int, states: Tensor) -> None:
        """Takes others in the place of the hidden states of a micro-batch."""
        self._hidden[batch] = states.cpu() if self._offload else states

    def output(self, index: int, batch: int) -> Tensor:
        """What block `index` makes of a micro-batch, [windows, length, width]."""
        return self.after(index, batch, self.states(batch))

    def after(self, index: int, batch: int, hidden: Tensor) -> Tensor:
        """What block `index` makes of hidden states, [windows, length, width], in place of those of a micro-batch."""
        return self._calls[batch][index].run(self._blocks[index], hidden)

    def instead(self, hidden: Tensor) -> AbstractContextManager[None]:
        """While the context lasts, a pass of the model runs no block, and comes to these hidden states after them."""
        return _identity_blocks(self._blocks, self._outputs, [], hidden)

    def run(self, index: int, *, keep: bool, after_batch: Callable[[], None] | None = None) -> None:
        """Runs block `index` over all windows.

        Args:
            index: of the decoder layer.
            keep: whether its outputs become the hidden states, in front of the next block.
            after_batch: called after each micro-batch.
        """
        for batch in range(len(self)):
            try:
                output = self.output(index, batch)  # [windows, length, width]
            except StopForward:
                if keep:
                    raise
            else:
                if keep:
                    self.put(batch, output)
            if after_batch is not None:
                after_batch()


def check_windows(windows: Tensor | None, method: str) -> Tensor:
    """The calibration windows, if they are int64 [windows, length] and not empty.

    Raises:
        PruningError: they are missing or something else.
    """
    if windows is None:
        raise PruningError(f"{method} needs activations or gradients; no calibration windows were given.")
    if windows.dim() != 2 or windows.dtype != torch.int64 or windows.numel() == 0:
        raise PruningError(
            f"calibration must be int64 token ids [windows, length] with at least one window, got {windows.dtype} "
            f"{list(windows.shape)}."
        )
    return windows


def micro_batch_of(windows: Tensor, device: torch.device, given: int | None) -> int:
    """How many windows to run at a time; the result does not depend on it but for rounding."""
    if given is not None:
        if given < 1:
            raise PruningError(f"micro_batch must be at least 1 window, got {given}.")
        return given
    tokens = _TOKENS if device.type == "cpu" else _TOKENS_ACCELERATOR
    return max(1, tokens // windows.shape[1])


@torch.no_grad()
def capture(
    model: nn.Module,
    blocks: nn.ModuleList,
    windows: Tensor,
    *,
    micro_batch: int | None = None,
    offload: bool | None = None,
    place: torch.device | None = None,
) -> BlockInputs:
    """The hidden states in front of the first block, and the other arguments of every block.

    The model runs once on each micro-batch with every block replaced by the identity, which costs as much as its
    embeddings. Each block's own arguments are kept, since some models give sliding and full attention another mask.
    Before that, a few tokens show whether the blocks, fed one after the other in this way, come to what the model
    itself comes to.

    Args:
        model: a causal language model in evaluation mode.
        blocks: its decoder layers.
        windows: token ids, int64 [windows, length].
        micro_batch: windows at a time; None = by the number of tokens.
        offload: whether hidden states are held on the CPU; None = where blocks are run on an accelerator.
        place: where blocks are run, each moved there for its turn; None = where the model is.

    Raises:
        WalkError: a forward pass does not call each block once, or hands on more than hidden states.
    """
    device = next(model.parameters()).device
    place = place or device
    inner = getattr(model, "base_model", model)  # without the head
    offload = place.type != "cpu" if offload is None else offload
    outputs = _verified(inner, blocks, windows[:1, :FEW].to(device))
    hidden: list[Tensor] = []
    calls: list[list[_Call]] = []
    for part in torch.split(windows, micro_batch_of(windows, place, micro_batch)):
        seen = _seen(inner, blocks, outputs, part.to(device))
        states = seen[0][0]  # [windows, length, width]
        hidden.append(states.cpu() if offload else states.to(place))
        moved: dict[int, Tensor] = {}  # one copy of what several blocks are called with
        here = [_Call(_on(call.args, place, moved), _on(call.kwargs, place, moved), call.by_name) for _, call in seen]
        calls.append([_sharing(call, calls[0][index]) if calls else call for index, call in enumerate(here)])
    return BlockInputs(blocks, hidden, calls, offload, place, outputs)


def _on(value: Any, place: torch.device, moved: dict[int, Tensor]) -> Any:
    """Arguments with their tensors on a device."""
    if isinstance(value, Tensor):
        if value.device == place:
            return value
        return moved.setdefault(id(value), value.to(place))
    if type(value) is tuple:
        return tuple(_on(item, place, moved) for item in value)
    if type(value) is dict:
        return {key: _on(item, place, moved) for key, item in value.items()}
    return value


def first_of(output: Any) -> Tensor:
    """The hidden states among what a block returns."""
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


def far(found: Tensor, wanted: Tensor) -> bool:
    """Whether a tensor is further from what it should be than rounding explains."""
    close = _CLOSE.get(wanted.dtype, _CLOSE_ROUNDED)
    return float((found - wanted).abs().max()) > close * float(wanted.abs().max())


def _verified(inner: nn.Module, blocks: nn.ModuleList, window: Tensor) -> list[Any]:
    """What each block returns, having seen that a walk through the blocks comes to what the model comes to.

    Args:
        window: int64 [1, length].

    Raises:
        WalkError: it does not.
    """
    outputs: list[list[Any]] = [[] for _ in blocks]
    handles = [
        block.register_forward_hook(lambda module, args, output, own=own: own.append(output))
        for block, own in zip(blocks, outputs, strict=True)
    ]
    try:
        inner(input_ids=window, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    what = type(inner).__name__
    if any(len(own) != 1 for own in outputs):
        raise _called(inner, sum(map(len, outputs)), blocks)
    found = [own[0] for own in outputs]
    try:
        seen = _seen(inner, blocks, found, window)
        states = seen[0][0]  # [1, length, width]
        for (_, call), block in zip(seen, blocks, strict=True):
            states = call.run(block, states)
        wanted = first_of(found[-1])
        finite = bool(wanted.isfinite().all())  # what is not finite has an error of its own
        apart = far(states, wanted)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise WalkError(
            f"decoder layers must take and return hidden states; those of {what} hand on something else: {error}"
        ) from error
    if finite and apart:
        raise WalkError(
            f"decoder layers that are run one after the other must give what the model gives; those of {what} do not: "
            "they hand on more than hidden states."
        )
    return found


def _seen(inner: nn.Module, blocks: nn.ModuleList, outputs: list[Any], tokens: Tensor) -> list[tuple[Tensor, _Call]]:
    """The hidden states and the other arguments of each block's call in a pass in which blocks change nothing."""
    seen: list[tuple[Tensor, _Call]] = []
    with _identity_blocks(blocks, outputs, seen):
        inner(input_ids=tokens, use_cache=False)
    if len(seen) != len(blocks):
        raise _called(inner, len(seen), blocks)
    return seen


def _called(inner: nn.Module, calls: int, blocks: nn.ModuleList) -> WalkError:
    return WalkError(
        f"a forward pass must call each decoder layer once; {type(inner).__name__} makes {calls} calls of "
        f"{len(blocks)} layers."
    )


def _like(output: Any, states: Tensor) -> Any:
    """Hidden states in the form in which a block returns them; what else it returns is left empty."""
    if isinstance(output, Tensor):
        return states
    rest = [None if isinstance(value, Tensor) else value for value in output[1:]]
    return (states, *rest)


@contextmanager
def _identity_blocks(
    blocks: nn.ModuleList, outputs: list[Any], seen: list[tuple[Tensor, _Call]], given: Tensor | None = None
) -> Iterator[None]:
    """Blocks that hand on what they get, or what is `given`, in the form of their `outputs`.

    They note in `seen` how they were called, in order.
    """

    def identity(output: Any, *args: Any, **kwargs: Any) -> Any:
        by_name = "hidden_states" in kwargs
        states, rest = (kwargs.pop("hidden_states"), args) if by_name else (args[0], args[1:])
        seen.append((states, _Call(rest, kwargs, by_name)))
        return _like(output, states if given is None else given)

    own = [block.__dict__.get("forward") for block in blocks]  # set on the instance by some wrappers
    try:
        for block, output in zip(blocks, outputs, strict=True):
            block.forward = partial(identity, output)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _sharing(call: _Call, first: _Call) -> _Call:
    """The call, with the tensors of the first micro-batch in place of those that equal them."""
    return _Call(_share(call.args, first.args), _share(call.kwargs, first.kwargs), call.by_name)


def _share(value: Any, first: Any) -> Any:
    if isinstance(value, Tensor) and isinstance(first, Tensor):
        same = value.shape == first.shape and value.dtype == first.dtype and value.device == first.device
        return first if same and torch.equal(value, first) else value
    if type(value) is tuple and type(first) is tuple and len(value) == len(first):
        return tuple(_share(item, other) for item, other in zip(value, first, strict=True))
    if type(value) is dict and type(first) is dict:
        value.update({key: _share(item, first.get(key)) for key, item in value.items()})  # blocks may hand it on
    return value
