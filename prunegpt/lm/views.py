"""One canonical view of a decoder's weight matrices.

GPT-2's `Conv1D` stores [in, out], `nn.Linear` stores [out, in], mixtures of experts store the matrices of all experts
in one parameter of three dimensions. Every criterion, pattern and solver sees [out, in]: a view that shares storage
with the parameter, so writing to it writes to the model.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunegpt.errors import ModelError, PruningError
from prunegpt.lm import ranks
from prunegpt.planning.memory import Sizes
from prunegpt.spec.names import Matrix, select_names
from prunegpt.spec.outline import Outline

OTHER_SENSES = re.compile("vision|visual|image|vqmodel|audio|speech")  # in the names of towers that do not read text
_EXPERTS = "Experts"  # ends the names of the classes that hold experts in one parameter
_TRANSPOSED_EXPERTS = frozenset({"AriaExperts", "Llama4TextExperts"})  # [experts, in, out], with no is_transposed
_DBRX_EXPERTS = {"w1": False, "v1": False, "w2": True}  # [experts · rows, columns]; whether rows are inputs
_EXPERT_COUNTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
    "n_experts",
)
_ROUTERS = frozenset({"gate", "router", "wg", "classifier", "shared_expert_gate", "modality_router", "expert_gate"})

# Parts of a block that are not pruned unless they are named: attention to an encoder, which language modelling never
# calls, and projections to time steps, which are few and which recurrent kernels read as bare weights.
_NEVER = frozenset({"encoder_attn", "crossattention", "cross_attn", "dt_proj"})


@dataclass(eq=False)
class WeightView:
    """A weight matrix of a model, seen as [out, in] however its module stores it.

    Where processes train a model of which each holds a part (FSDP2), `parameter` is a DTensor of which each has some of
    the rows, and what is given as [out, in] is our part of the matrix, which may be empty; :meth:`whole` joins the
    parts.
    """

    name: str  # full parameter name, such as transformer.h.0.attn.c_attn.weight; of an expert with [its index]
    parameter: nn.Parameter
    module: nn.Module
    transposed: bool  # True where the module stores [in, out]
    block: int | None  # index of the decoder layer; None outside the layers
    expert: int | None = None  # index within a parameter that holds several matrices, such as those of all experts
    matrices: int = 1  # how many the parameter holds
    default: bool = True  # whether it is pruned where a request names no targets
    shared: bool = False  # whether several decoder layers use it; `block` is the first of them

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of it."""
        return hasattr(self.parameter, "to_local")

    @property
    def matrix(self) -> Tensor:
        """The weight, [out, in], sharing storage with the parameter."""
        return self.oriented(self.parameter.data)

    @property
    def gradient(self) -> Tensor | None:
        """The gradient, [out, in], sharing storage with the parameter's; None before the first backward pass."""
        return None if self.parameter.grad is None else self.oriented(self.parameter.grad)

    def oriented(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape, such as an optimizer's moments, as [out, in]; it shares storage."""
        matrix = tensor
        if self.sharded:
            first, last = self._rows()[ranks.rank()]
            begin = ranks.rank() * self._each
            matrix = tensor.to_local()[first - begin : last - begin]  # type: ignore[attr-defined]
            matrix = matrix.flatten(0, 1) if matrix.dim() == 3 else matrix
        elif self.expert is not None:
            stacked = tensor if tensor.dim() == 3 else tensor.view(self.matrices, -1, tensor.shape[1])
            matrix = stacked[self.expert]
        return matrix.t() if self.transposed else matrix  # [out, in]

    def part(self, whole: Tensor) -> Tensor:
        """Our part of a tensor [out, in], sharing its storage; all of it where the parameter is not sharded."""
        if not self.sharded:
            return whole
        stored = whole.t() if self.transposed else whole  # as the module stores it
        begin, end = self._span
        first, last = (len(stored) * (row - begin) // (end - begin) for row in self._rows()[ranks.rank()])
        return stored[first:last].t() if self.transposed else stored[first:last]  # [out, in]

    def whole(self, part: Tensor) -> Tensor:
        """What the parts [out, in] of all processes, which all call this, come to; a part that is all is given back."""
        if not self.sharded:
            return part
        stored = part.t() if self.transposed else part
        high = 1 if self.parameter.dim() == 2 else self.parameter.shape[1]  # rows of a matrix to one of the parameter
        joined = ranks.joined_rows(stored, [(last - first) * high for first, last in self._rows()])
        return joined.t() if self.transposed else joined  # [out, in]

    @property
    def _span(self) -> tuple[int, int]:
        """From which row of the parameter's first axis the matrix goes to which."""
        size = self.parameter.shape[0] // self.matrices
        return (0, self.parameter.shape[0]) if self.expert is None else (self.expert * size, (self.expert + 1) * size)

    @property
    def _each(self) -> int:
        """How many rows of the parameter each process has; the last ones have fewer, or none."""
        return -(-self.parameter.shape[0] // ranks.count())

    def _rows(self) -> list[tuple[int, int]]:
        """Which of its rows each process has."""
        begin, end = self._span
        edges = [min(max(rank * self._each, begin), end) for rank in range(ranks.count() + 1)]
        return [*pairwise(edges)]


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of a decoder's blocks and its name: the first of :func:`decoder_lists`."""
    return next(iter(decoder_lists(model).items()))


def decoder_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of a decoder's blocks by name, such as {"transformer.h": ModuleList of 12}.

    The first is the outermost ModuleList whose length is `config.num_hidden_layers`, or else the longest one. Lists
    inside another list, such as the experts of a block, are ignored. Others of its length hold further parts of the
    same layers (XLM keeps attention and feed-forward apart, HRM has two stacks).

    Raises:
        ModelError: there is no such list.
    """
    lists = _layer_lists(model)
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else model  # not the towers beside it
    parts = set(decoder.modules())
    found = {name: part for name, part in lists.items() if part in parts} or lists
    if not found:
        raise ModelError(
            f"a decoder must keep its blocks in an nn.ModuleList; {type(model).__name__} has none with matrices in it. "
            "Use a causal language model of transformers, such as GPT-2, Llama or OPT."
        )
    config = model.config.get_text_config() if isinstance(model, PreTrainedModel) else getattr(model, "config", None)
    depth = getattr(config, "num_hidden_layers", None)
    read = {name: part for name, part in found.items() if not OTHER_SENSES.search(name)} or found
    first, blocks = max(read.items(), key=lambda item: (len(item[1]) == depth, len(item[1])))
    return {first: blocks, **{name: part for name, part in read.items() if len(part) == len(blocks)}}


def _layer_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The outermost lists of layers with matrices in them, by name."""
    found: dict[str, nn.ModuleList] = {}
    for name, part in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(part, nn.ModuleList) and not inside and any(_matrices(part)):
            found[name] = part
    return found


def text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a causal language model that gives the last hidden states, without the output layer.

    What transformers calls the decoder; where that is no model, or has the output layer too, the model that holds the
    decoder layers.

    Raises:
        ModelError: the model has no list of decoder layers.
    """
    decoder = model.get_decoder()
    if isinstance(decoder, PreTrainedModel) and decoder.get_output_embeddings() is None:
        return decoder
    place, _ = decoder_blocks(model)
    while place:
        place = place.rpartition(".")[0]
        part = model.get_submodule(place)
        if isinstance(part, PreTrainedModel):
            return part
    return model


def block_matrices(model: nn.Module) -> dict[str, WeightView]:
    """What is pruned by default: the weights inside the decoder layers, by parameter name, in module order.

    Of Linear and Conv1D layers, and of each expert. Embeddings, the head, norms, biases, routers and projections
    outside the blocks (OPT's project_in and project_out) are left out. A tied weight appears once.

    Raises:
        ModelError: the model has no list of decoder layers.
    """
    views = _all_views(model)[0]
    return {name: view for name, view in views.items() if view.block is not None and view.default}


def all_matrices(model: nn.Module) -> dict[str, WeightView]:
    """Every weight matrix, embeddings, the head and routers included, by parameter name, in module order.

    Raises:
        ModelError: the model has no list of decoder layers.
    """
    return _all_views(model)[0]


def select(
    model: nn.Module,
    targets: Sequence[str] = (),
    layers: Sequence[int] = (),
    exclude: Sequence[str] = (),
) -> dict[str, WeightView]:
    """The weight matrices that a request names, by parameter name, in module order.

    Args:
        model: a causal language model.
        targets, layers, exclude: as :func:`prunegpt.spec.names.select_names` reads them.

    Raises:
        ModelError: the model has no list of decoder layers.
        PruningError: a pattern or an index matches nothing (the nearest names are given), or nothing is left.
    """
    views, aliases = _all_views(model)
    chosen, problems = select_names(_listed(views, aliases), targets=targets, layers=layers, exclude=exclude)
    if problems:
        raise PruningError(" ".join(problems))
    return {name: views[name] for name in chosen}


def outline(model: nn.Module) -> Outline:
    """What a model consists of, for what can be said without torch; the model may be on the meta device.

    Raises:
        ModelError: the model has no list of decoder layers.
    """
    decoder, heads = model, []
    if isinstance(model, PreTrainedModel):
        decoder, heads = text_decoder(model), [model.get_output_embeddings()]
    vocabularies = [module for module in decoder.modules() if isinstance(module, nn.Embedding)]
    left_out = {id(parameter) for module in (*vocabularies, *filter(None, heads)) for parameter in module.parameters()}
    inside = {id(parameter) for parameter in decoder.parameters()} - left_out
    weights = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and id(parameter) in inside and not OTHER_SENSES.search(name)
    }
    return Outline(matrices(model), weights)


def matrices(model: nn.Module) -> list[Matrix]:
    """What can be said of a model's weight matrices without torch, in module order: for checks that a plan shares.

    Raises:
        ModelError: the model has no list of decoder layers.
    """
    return _listed(*_all_views(model))


def named(views: Mapping[str, WeightView]) -> list[Matrix]:
    """The same of some weight matrices."""
    return _listed(views, {name: {name} for name in views})


def _listed(views: Mapping[str, WeightView], aliases: Mapping[str, set[str]]) -> list[Matrix]:
    return [_named(view, aliases[name]) for name, view in views.items()]


def _named(view: WeightView, names: set[str]) -> Matrix:
    out, inputs = view.matrix.shape
    embedding = isinstance(view.module, nn.Embedding)
    return Matrix(view.name, view.block, (out, inputs), tuple(sorted(names - {view.name})), embedding, view.default)


def _matrices(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the layers with weight matrices in `module`: Linear, Conv1D, Embedding, experts."""
    for name, layer in module.named_modules(prefix=prefix):
        if _has_matrices(layer):
            yield name, layer


def _has_matrices(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, Conv1D, nn.Embedding)) or any(_stacked(layer))


class _Stack(NamedTuple):
    """A parameter that holds several matrices: [matrices, out, in], or one below the other in two dimensions."""

    name: str
    parameter: nn.Parameter
    matrices: int
    transposed: bool  # [in, out] each


def _stacked(module: nn.Module) -> Iterator[_Stack]:
    """The parameters of a module that hold the matrices of all experts, or of all groups of outputs."""
    kind = type(module).__name__
    if kind.endswith(_EXPERTS):
        transposed = getattr(module, "is_transposed", kind in _TRANSPOSED_EXPERTS)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and parameter.is_floating_point():
                yield _Stack(name, parameter, parameter.shape[0], transposed)
    elif kind == "DbrxExpertGLU":
        experts: Any = module
        for name, transposed in _DBRX_EXPERTS.items():
            yield _Stack(name, module.get_parameter(name), experts.moe_num_experts, transposed)
    elif isinstance(module, nn.Linear) and isinstance(groups := getattr(module, "n_groups", None), int):
        yield _Stack("weight", module.get_parameter("weight"), groups, False)  # DeepSeek-V4: each has its own inputs


def _all_views(model: nn.Module) -> tuple[dict[str, WeightView], dict[str, set[str]]]:
    """Every matrix once, and for each the parameter names it goes by, tied ones included."""
    lists = decoder_lists(model)
    users = Counter(id(parameter) for blocks in lists.values() for block in blocks for parameter in block.parameters())
    experts = _expert_counts(model)
    views: dict[str, WeightView] = {}
    aliases: dict[str, set[str]] = {}
    first_name: dict[int, str] = {}
    stacked: set[int] = set()
    for module_name, module in model.named_modules():
        if not _has_matrices(module) and not _is_bare_router(module_name, module, experts):
            continue
        prefix = next((f"{name}." for name in lists if module_name.startswith(f"{name}.")), "")
        inside = bool(prefix) and not isinstance(module, nn.Embedding)
        block = int(module_name.removeprefix(prefix).partition(".")[0]) if inside else None
        for name, parameter, count, transposed in _stacked(module):
            for index in range(count):
                own = f"{module_name}.{name}[{index}]"
                shared = inside and users[id(parameter)] > 1
                views[own] = WeightView(own, parameter, module, transposed, block, index, count, shared=shared)
                aliases[own] = {own}
                stacked.add(id(parameter))
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or id(weight) in stacked:
            continue
        name = first_name.setdefault(id(weight), f"{module_name}.weight")
        if name not in views:
            apart = inside and (
                _is_router(module_name, weight.shape[0], experts) or not _NEVER.isdisjoint(module_name.split("."))
            )
            views[name] = WeightView(
                name,
                weight,
                module,
                isinstance(module, Conv1D),
                block,
                default=not apart,
                shared=inside and users[id(weight)] > 1,
            )
        aliases.setdefault(name, set()).add(f"{module_name}.weight")
    return views, aliases


def _expert_counts(model: nn.Module) -> frozenset[int]:
    """How many experts a layer may have, as the config of the model and of its parts says."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    parts = [getattr(config, name, None) for config in configs.values() for name in getattr(config, "sub_configs", ())]
    found = {getattr(config, name, None) for config in (*configs.values(), *parts) for name in _EXPERT_COUNTS}
    return frozenset(count for count in found if isinstance(count, int))


def _is_bare_router(name: str, module: nn.Module, experts: frozenset[int]) -> bool:
    """Whether a module is a router that holds its matrix itself, and is no linear layer (Mixtral, gpt-oss)."""
    weight = getattr(module, "weight", None)
    bare = isinstance(weight, nn.Parameter) and weight.dim() == 2
    return bare and _is_router(name, weight.shape[0], experts)  # type: ignore[union-attr]


def _is_router(name: str, outputs: int, experts: frozenset[int]) -> bool:
    """Whether a layer decides where tokens go or how much of an output counts: nobody prunes those.

    Such layers, or what holds them, are called gate or router, and have one output per expert, or a single one. (RWKV's
    `gate` is as wide as the model, and a projection like others.)
    """
    return not _ROUTERS.isdisjoint(name.split(".")[-2:]) and (outputs == 1 or outputs in experts)


def memory_sizes(found: Outline, config: Any) -> Sizes:
    """What memory depends on of a model with that outline and config."""
    text = config.get_text_config()
    active = getattr(text, "num_experts_per_tok", None) or 1
    return Sizes.of(found, width=text.hidden_size, vocabulary=text.vocab_size, active=active)
