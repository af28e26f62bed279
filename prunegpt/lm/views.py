"""One canonical view of a decoder's weight matrices.

GPT-2's `Conv1D` stores [in, out], `nn.Linear` stores [out, in]. Every criterion, pattern and solver sees [out, in]: a
view that shares storage with the parameter, so writing to it writes to the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunegpt.errors import ModelError, PruningError
from prunegpt.spec.names import Matrix, select_names


@dataclass(frozen=True, eq=False)
class WeightView:
    """A weight matrix of a model, seen as [out, in] however its module stores it."""

    name: str  # full parameter name, such as transformer.h.0.attn.c_attn.weight
    parameter: nn.Parameter
    module: nn.Module
    transposed: bool  # True where the module stores [in, out]
    block: int | None  # index of the decoder layer; None outside the blocks

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
        return tensor.t() if self.transposed else tensor  # [out, in]


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of a decoder's blocks and its name, such as ("transformer.h", ModuleList of 12).

    It is the outermost ModuleList whose length is `config.num_hidden_layers`, or else the longest one. Lists inside
    another list, such as the experts of a block, are ignored.

    Raises:
        ModelError: there is no such list.
    """
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and any(_matrices(module)):
            found[name] = module
    if not found:
        raise ModelError(
            f"a decoder must keep its blocks in an nn.ModuleList, but {type(model).__name__} has none with matrices "
            f"in it. Use a causal language model of transformers, such as GPT-2, Llama or OPT."
        )
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    return max(found.items(), key=lambda item: (len(item[1]) == depth, len(item[1])))


def block_matrices(model: nn.Module) -> dict[str, WeightView]:
    """All Linear and Conv1D weights inside the decoder layers, by parameter name, in module order.

    Embeddings, the head, norms, biases and projections outside the blocks (OPT's project_in and project_out) are left
    out, as are experts that a model fuses into one three-dimensional parameter. A tied weight appears once.

    Raises:
        ModelError: the model has no list of decoder layers.
    """
    return {name: view for name, view in _all_views(model)[0].items() if view.block is not None}


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
    views, _ = _all_views(model)
    chosen, problems = select_names(matrices(model), targets=targets, layers=layers, exclude=exclude)
    if problems:
        raise PruningError(" ".join(problems))
    return {name: views[name] for name in chosen}


def matrices(model: nn.Module) -> list[Matrix]:
    """What can be said of a model's weight matrices without torch, in module order: for checks that a plan shares.

    Raises:
        ModelError: the model has no list of decoder layers.
    """
    views, aliases = _all_views(model)
    return [_named(view, aliases[name]) for name, view in views.items()]


def named(views: Mapping[str, WeightView]) -> list[Matrix]:
    """The same of some weight matrices."""
    return [_named(view, {name}) for name, view in views.items()]


def _named(view: WeightView, names: set[str]) -> Matrix:
    out, inputs = view.matrix.shape
    embedding = isinstance(view.module, nn.Embedding)
    return Matrix(view.name, view.block, (out, inputs), tuple(sorted(names - {view.name})), embedding)


def _matrices(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the Linear, Conv1D and Embedding layers in `module`."""
    for name, layer in module.named_modules(prefix=prefix):
        if isinstance(layer, (nn.Linear, Conv1D, nn.Embedding)):
            yield name, layer


def _all_views(model: nn.Module) -> tuple[dict[str, WeightView], dict[str, set[str]]]:
    """Every matrix once, and for each the parameter names it goes by, tied ones included."""
    prefix, _ = decoder_blocks(model)
    views: dict[str, WeightView] = {}
    aliases: dict[str, set[str]] = {}
    first_name: dict[int, str] = {}
    for module_name, module in _matrices(model):
        parameter = module.weight
        if not isinstance(parameter, nn.Parameter):
            continue
        inside = module_name.startswith(f"{prefix}.") and not isinstance(module, nn.Embedding)
        block = int(module_name[len(prefix) + 1 :].partition(".")[0]) if inside else None
        name = first_name.setdefault(id(parameter), f"{module_name}.weight")
        if name not in views:
            views[name] = WeightView(name, parameter, module, isinstance(module, Conv1D), block)
        aliases.setdefault(name, set()).add(f"{module_name}.weight")
    return views, aliases
