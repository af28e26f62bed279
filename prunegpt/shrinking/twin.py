"""The larger model with the same parts masked: what a smaller model must compute."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunegpt.errors import ShrinkError
from prunegpt.lm.device import in_double
from prunegpt.shrinking.axes import Axis
from prunegpt.shrinking.pieces import Piece

_TOKENS = 12  # that a cut is tried on
_CLOSE = {torch.float32: (1e-3, 2e-5), torch.float64: (1e-6, 1e-10)}  # of what masking changes; of the largest logit
_CLOSE_ROUNDED = (0.2, 3e-2)  # the same of types of few digits


@contextmanager
def masked(
    model: PreTrainedModel,
    old: Mapping[str, Piece],
    smaller: PreTrainedModel,
    axes: Sequence[Axis],
    kept: Mapping[str, Tensor],
) -> Iterator[None]:
    """The model as if some members were not there, while the context lasts.

    Nothing reads them: the columns of the matrices that do are zero. A norm over members goes over those that stay, as
    it does in the smaller model, whose norm of that name computes it.

    Args:
        model: the larger model.
        old: its pieces.
        smaller: the smaller model, filled.
        axes: where the members are.
        kept: those that stay of each group, ascending.
    """
    with ExitStack() as stack:
        for axis in axes:
            if axis.reads:
                stack.enter_context(_zeroed(old[axis.piece].tensor, _dropped(axis, kept).to(model.device)))
        for name, index, width in _norms(model, old, axes, kept):
            hook = _over(smaller.get_submodule(name), index.to(model.device), width)
            stack.enter_context(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
        yield


def apart(model: PreTrainedModel, smaller: PreTrainedModel, mask: Any) -> tuple[float, bool]:
    """How far the logits of a smaller model are from those of the larger one under a mask, and whether that is little.

    Args:
        mask: a context in which the larger model is masked.

    Raises:
        ShrinkError: one of them does not run on tokens alone.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    drawn = torch.randint(vocabulary, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
    tokens = drawn.to(model.device)  # [1, tokens]
    whole = _logits(model, tokens)
    with mask:
        expected = _logits(model, tokens)
    found = _logits(smaller, tokens)
    distance = (expected - found).abs().max().item()
    return distance, distance <= rounding(model.dtype, expected, whole)  # False also where one is not a number


def rounding(dtype: torch.dtype, expected: Tensor, whole: Tensor | None = None) -> float:
    """How far logits may be from those of the larger model by rounding alone.

    Sums of fewer terms are added in another order. SmolLM2-135M with 1,152 of its 1,536 neurons and its masked twin are
    1.8e-6 of the largest logit apart in float32, where the limit is 2e-5, and equal in float64.

    Args:
        expected: logits of the larger model, masked.
        whole: those of the larger model as it is; None: nothing is added for what masking changes.
    """
    share, floor = _CLOSE.get(dtype, _CLOSE_ROUNDED)
    changed = 0.0 if whole is None else (expected - whole).abs().max().item()
    return float(share * changed + floor * expected.abs().max().item())


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    try:
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits  # [1, tokens, vocabulary]
    except Exception as error:  # whatever the code of the family does not expect
        raise ShrinkError(
            f"the larger and the smaller model must run on tokens; {type(model).__name__} does not: "
            f"{type(error).__name__}: {' '.join(str(error).split())}. The family takes sizes from another "
            "field, needs more than tokens, or has kernels for rounder sizes: try a multiple of 32."
        ) from error
    return in_double(logits)


def others(count: int, kept: Tensor) -> Tensor:
    """Those of `count` members that do not stay: int64, ascending."""
    stays = torch.zeros(count, dtype=torch.bool)
    stays[kept] = True
    return (~stays).nonzero()[:, 0]


def _dropped(axis: Axis, kept: Mapping[str, Tensor]) -> Tensor:
    return axis.positions(others(axis.members, kept[axis.group]))


@contextmanager
def _zeroed(matrix: Tensor, columns: Tensor) -> Iterator[None]:
    before = matrix[:, columns].clone()  # [out, dropped]
    matrix[:, columns] = 0
    try:
        yield
    finally:
        matrix[:, columns] = before


def _norms(
    model: PreTrainedModel, old: Mapping[str, Piece], axes: Sequence[Axis], kept: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, int]]:
    """The norms over members: their names, the entries that stay, and how many there are.

    A norm without weights is over the channels where it is given as many entries.
    """
    done = set()
    for axis in axes:
        place = old[axis.piece].place
        if place not in done and _is_norm(model.get_submodule(place)):
            done.add(place)
            yield place, axis.positions(kept[axis.group]), axis.members * sum(axis.sections)
    channels = next((axis for axis in axes if not axis.group), None)
    for place, module in model.named_modules():
        if channels and place not in done and _is_norm(module) and not [*module.parameters()]:
            yield place, kept[channels.group], channels.members


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _over(norm: nn.Module, index: Tensor, width: int) -> Any:
    """A hook that gives a norm over some of the entries, and zeros for the others."""

    def hook(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        states, *rest = given or named.values()
        if states.shape[-1] != width:
            return output
        return torch.zeros_like(output).index_copy_(-1, index, norm(states[..., index], *rest))

    return hook
