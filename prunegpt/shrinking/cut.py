"""Applies a decision: the config of the smaller shape, an ordinary transformers model of it, and the slices kept."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.initialization import no_init_weights

from prunegpt.errors import ShrinkError, listed
from prunegpt.lm.multimodal import read_text
from prunegpt.lm.views import decoder_lists
from prunegpt.shrinking.pieces import Piece, pieces
from prunegpt.shrinking.twin import rounding
from prunegpt.spec.shapes import shrunk_config

_NUMBERS = frozenset({"layer_idx", "layer_id", "layer_number", "layer_index", "block_idx", "block_index", "idx"})
_PLAIN = (bool, int, float, str, type(None))
_RAISED = (ValueError, RuntimeError, LookupError, AttributeError, TypeError)  # by code of models
_CACHES = ("cache", "past_key_values")  # what transformers calls it, newest first
_TOKENS = 12  # that a cut is tried on


@dataclass(frozen=True)
class Slice:
    """Where a piece of the smaller model comes from: equally its weights and its mask.

    Attributes:
        source: the name of the piece in the larger model.
        index: what stays along each dimension of it, [out, in] of a matrix; None: all. Empty: all of the piece.
    """

    source: str
    index: tuple[tuple[int, ...] | None, ...] = ()

    def of(self, tensor: Tensor) -> Tensor:
        """The slice of a tensor that has the shape of the larger piece."""
        for dimension, kept in enumerate(self.index):
            if kept is not None:
                tensor = tensor.index_select(dimension, torch.tensor(kept, device=tensor.device))
        return tensor


@dataclass(frozen=True)
class Cut:
    """A smaller model, and where each of its pieces comes from, by name (see :mod:`prunegpt.shrinking.pieces`)."""

    model: PreTrainedModel
    slices: Mapping[str, Slice]


@torch.no_grad()
def cut_depth(model: PreTrainedModel, layers: tuple[int, ...]) -> Cut:
    """An ordinary model of some of the decoder layers, which computes what the whole one does without the others.

    Args:
        model: a causal language model.
        layers: those that stay, ascending.

    Raises:
        ShrinkError: the family's config cannot express it; the layer is named.
    """
    smaller = build(model, shrunk_config(model.config.to_dict(), layers=layers))
    _check_layers(model, smaller, layers)
    lists = decoder_lists(model)
    depth = len(next(iter(lists.values())))

    def source(name: str) -> str:
        for place in lists:
            if name.startswith(f"{place}."):
                number, dot, rest = name.removeprefix(f"{place}.").partition(".")
                return f"{place}.{layers[int(number)]}{dot}{rest}"
        return name

    old, new = pieces(model), pieces(smaller)

    def part(name: str) -> Slice:
        if (place := source(name)) == name and name in old:
            return Slice(name, _beside(old[name].tensor.shape, new[name].tensor.shape, layers, depth))
        return Slice(place)

    found = filled(model, old, smaller, new, part)
    _check_sameness(model, found.model, layers)
    return found


def _beside(
    old: torch.Size, new: torch.Size, layers: tuple[int, ...], depth: int
) -> tuple[tuple[int, ...] | None, ...]:
    """What stays of a parameter that holds a part for each layer, side by side, as Gemma's per-layer embeddings do."""
    index = []
    for before, after in zip(old, new, strict=True):
        each = before // depth
        beside = before != after and before == depth * each and after == len(layers) * each
        index.append(tuple(layer * each + at for layer in layers for at in range(each)) if beside else None)
    return tuple(index)


def build(
    model: PreTrainedModel, config: Mapping[str, Any], device: str | torch.device | None = None, *, drawn: bool = False
) -> PreTrainedModel:
    """A model of the same class with another config, in evaluation mode.

    Args:
        device: default: that of the model.
        drawn: its weights are drawn as its family draws them, always the same; else they are not set.

    Raises:
        ShrinkError: transformers does not take the config.
    """
    device = torch.device(device or model.device)
    try:
        with ExitStack() as stack:
            if drawn:
                stack.enter_context(torch.random.fork_rng(devices=[]))
                torch.manual_seed(0)
            else:
                stack.enter_context(no_init_weights())
            stack.enter_context(torch.device("meta" if device.type == "meta" else "cpu"))
            smaller: PreTrainedModel = type(model)(type(model.config).from_dict(dict(config)))
    except Exception as error:  # rules of the family
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ShrinkError(
            f"the smaller shape must be one that transformers builds; {type(model).__name__} refuses its config: "
            f"{reason}. Choose other sizes."
        ) from error
    smaller.generation_config = model.generation_config
    smaller.tie_weights()
    return read_text(smaller.to(device=device, dtype=model.dtype).eval())


def filled(
    model: PreTrainedModel,
    old: Mapping[str, Piece],
    smaller: PreTrainedModel,
    new: Mapping[str, Piece],
    slice_of: Callable[[str], Slice],
) -> Cut:
    """Copies into a smaller model what stays of the larger one.

    Args:
        old, new: the pieces of both.
        slice_of: where a piece of the smaller model comes from.

    Raises:
        ShrinkError: a slice has not the shape of its piece.
    """
    slices = {}
    for name, target in new.items():
        part = slice_of(name)
        source = old.get(part.source)
        kept = None if source is None else part.of(source.tensor)
        if kept is None or kept.shape != target.tensor.shape:
            have = "is not there" if kept is None else f"keeps {list(kept.shape)}"
            raise ShrinkError(
                f"what stays must fill the smaller model; {name} is {list(target.tensor.shape)} there, and "
                f"{part.source} {have}. {type(model).__name__} cannot be cut so."
            )
        target.tensor.copy_(kept)
        slices[name] = part
    return Cut(smaller, slices)


def _check_layers(model: PreTrainedModel, smaller: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """Every layer of the smaller model is built as the one that it stands for."""
    before, after = decoder_lists(model), decoder_lists(smaller)
    for place, blocks in before.items():
        if place not in after or len(after[place]) != len(layers):
            raise ShrinkError(
                f"the layers of the smaller model must be the ones that stay; {type(model).__name__} makes "
                f"{len(after.get(place, ()))} in {place} where {len(layers)} stay. Its depth cannot be cut."
            )
        for index, layer in enumerate(layers):
            mine, theirs = traits(blocks[layer]), traits(after[place][index])
            names = sorted(mine.keys() | theirs.keys())
            if name := next((name for name in names if not _same(mine.get(name), theirs.get(name))), None):
                raise ShrinkError(
                    f"the layers of the smaller model must be the ones that stay; its config makes layer {index} with "
                    f"{name} {theirs.get(name, 'absent')}, and it stands for layer {layer} with "
                    f"{mine.get(name, 'absent')}. {type(model).__name__} places such layers by their number: keep "
                    "others, such that the kinds stay where they are."
                )


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, float) and isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=1e-9)
    return bool(mine == theirs)


def traits(block: nn.Module) -> dict[str, Any]:
    """What decides how a layer computes, but its weights: shapes, classes and plain attributes, by name."""
    found: dict[str, Any] = {name: tuple(weight.shape) for name, weight in block.named_parameters()}
    for place, module in block.named_modules():
        found[f"{place}.class".lstrip(".")] = type(module).__name__
        for name, value in vars(module).items():
            if isinstance(value, _PLAIN) and not name.startswith("_") and name not in _NUMBERS:
                found[f"{place}.{name}".lstrip(".")] = value
    return found


def _check_sameness(model: PreTrainedModel, smaller: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """Both give the same logits where the larger one passes over the layers that went."""
    place, blocks = next(iter(decoder_lists(model).items()))
    tokens = torch.arange(_TOKENS, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    try:
        with bypassed(model, set(range(len(blocks))) - set(layers)):
            expected = model(input_ids=tokens, use_cache=False).logits
        found = smaller(input_ids=tokens, use_cache=False).logits
    except _RAISED as error:
        raise ShrinkError(
            f"a model must run without the layers that go; {type(model).__name__} does not: {error}. Others need what "
            "those make: keep them."
        ) from error
    apart = (expected - found).abs().max().item()
    if not apart <= rounding(model.dtype, expected):  # also where one of them is not a number
        raise ShrinkError(
            f"a model without some layers must compute what it did with them passed over; the logits of "
            f"{type(model).__name__} are {apart:.2g} apart ({place}). Its layers depend on their number or on each "
            "other: its depth cannot be cut."
        )
    _check_cache(model, smaller, tokens, found)


def _check_cache(model: PreTrainedModel, smaller: PreTrainedModel, tokens: Tensor, expected: Tensor) -> None:
    """The smaller model gives the same logits with a cache of keys and values, if the larger one can use one."""
    try:
        whole = model(input_ids=tokens, use_cache=False).logits[:, -1]  # [batch, vocabulary]
        if not torch.allclose(_with_cache(model, tokens), whole, rtol=1e-3, atol=1e-3):
            return  # it does not use one that it is given
    except (*_RAISED, StopIteration):
        return
    try:
        found = _with_cache(smaller, tokens)
        reason = "" if torch.allclose(found, expected[:, -1], rtol=1e-3, atol=1e-3) else "its logits differ then"
    except _RAISED as error:
        reason = str(error)
    if reason:
        raise ShrinkError(
            f"a smaller model must generate with a cache as the larger one does; {type(model).__name__} does not: "
            f"{reason.rstrip('.')}. Keep a layer of each kind."
        )


def _with_cache(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The logits of the last token, the others taken from a cache: [batch, vocabulary]."""
    before = model(input_ids=tokens[:, :-1], use_cache=True)
    name = next((name for name in _CACHES if name in before), None)
    if name is None:  # one is filled that is given, as `generate` does
        name = next(name for name in _CACHES if name in inspect.signature(model.forward).parameters)
        before = {name: DynamicCache(config=model.config)}
        model(input_ids=tokens[:, :-1], use_cache=True, **before)
    found: Tensor = model(input_ids=tokens[:, -1:], use_cache=True, **{name: before[name]}).logits
    return found[:, -1]


@contextmanager
def bypassed(model: PreTrainedModel, layers: set[int]) -> Iterator[None]:
    """The model passes over some of its decoder layers while the context lasts: each hands on what it is given."""

    def skip(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        states = given[0] if given else named["hidden_states"]
        if hasattr(output, "_fields"):  # reversible layers have two streams
            raise ShrinkError(
                f"a layer must hand on hidden states for its depth to be cut; one of {type(model).__name__} hands on "
                f"{listed(output._fields)}. Cut another dimension."
            )
        return (states, *output[1:]) if isinstance(output, (tuple, list)) else states

    with ExitStack() as hooks:
        for blocks in decoder_lists(model).values():
            for layer in sorted(layers):
                hooks.enter_context(blocks[layer].register_forward_hook(skip, with_kwargs=True))
        yield
