"""Which experts of a mixture stay, and the model of those with its routers cut."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from prunegpt.errors import ShrinkError
from prunegpt.lm.device import in_double
from prunegpt.lm.views import decoder_lists
from prunegpt.pruning.statistics import evaluating
from prunegpt.shrinking.cut import Cut, Slice, build, filled
from prunegpt.shrinking.pieces import Piece, pieces
from prunegpt.shrinking.twin import apart, others
from prunegpt.shrinking.width import highest
from prunegpt.spec.shapes import text_part
from prunegpt.spec.widths import expert_groups_of, experts_of

_PRODUCTS = frozenset({nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.addmm})
_OWN_MODULE = re.compile(r"experts\.\d+(\.|$)")


@dataclass(frozen=True, eq=False)
class ExpertUse:
    """What the experts of a layer did with the calibration tokens.

    Attributes:
        reap: the mean over the tokens that were routed to an expert of router weight · norm of its output, float64
            [experts]; 0 where none was.
        tokens: how many were, int64 [experts].
    """

    reap: Tensor
    tokens: Tensor


def reap(use: ExpertUse) -> Tensor:
    """Experts by what they add to the tokens that are routed to them: float64 [experts]."""
    return use.reap


def frequency(use: ExpertUse) -> Tensor:
    """Experts by how many tokens are routed to them: float64 [experts]."""
    return use.tokens.double()


@torch.no_grad()
def cut_experts(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    windows: Tensor,
    *,
    choice: Callable[[ExpertUse], Tensor] = reap,
    calibrated: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Cut, list[dict[str, Any]]]:
    """A model of the experts with the highest scores of each layer, in the order that they had.

    The rows of the routers are cut with them. What a router does with its scores is the family's own code, which then
    computes what it did with the logits of the other experts at minus infinity; this is compared on a few tokens.
    Shared experts stay. Of experts that tokens are routed to in groups, equally many of each group stay.

    Args:
        model: a mixture of experts.
        config: that of the smaller model, which differs in the number of experts.
        windows: token ids, int64 [windows, length].
        choice: the scores of a layer's experts, such as :func:`reap` or :func:`frequency`.
        calibrated: called with the windows that are done, and their number.

    Returns:
        The smaller model, and a row of each layer.

    Raises:
        ShrinkError: the family cannot express it.
    """
    smaller = build(model, config)
    old, new = pieces(model), pieces(smaller)
    homes, layers = homes_between(model, old, smaller, new), list(decoder_lists(model))
    text, small = text_part(model.config.to_dict()), experts_of(text_part(config)) or 1
    whole = experts_of(text) or 1
    use = expert_use(model, homes, whole, windows, calibrated=calibrated)
    kept = {_layer(home, layers): _chosen(choice(found), small, expert_groups_of(text)) for home, found in use.items()}
    index = {layer: tuple(stays.tolist()) for layer, stays in kept.items()}

    def slice_of(name: str) -> Slice:
        piece = new[name]
        stays = index.get(_layer(piece.place, layers), ())
        if piece.expert is not None and piece.place in homes:
            return Slice(f"{name.removesuffix(f'[{piece.expert}]')}[{stays[piece.expert]}]")
        sizes = zip(old[name].tensor.shape, piece.tensor.shape, strict=True)
        return Slice(name, tuple(None if mine == theirs else stays for mine, theirs in sizes))

    cut = filled(model, old, smaller, new, slice_of)
    routers = [piece for name, piece in old.items() if name in new and new[name].tensor.shape != piece.tensor.shape]
    disabled = _Disabled([(piece, others(whole, kept[_layer(piece.place, layers)])) for piece in routers], whole)
    distance, close = apart(model, smaller, disabled.mask())
    if disabled.seen and not close:
        raise ShrinkError(
            "a smaller mixture must compute what the larger one does without the same experts; the logits of "
            f"{type(model).__name__} are {distance:.2g} apart. Its router works in a way that is not known: its "
            "experts cannot be cut."
        )
    rows = [_row(home, use[home], kept[_layer(home, layers)]) for home in use]
    return cut, rows


def _row(home: str, use: ExpertUse, kept: Tensor) -> dict[str, Any]:
    reap, tokens = use.reap.sum().item(), use.tokens.sum().item()
    return {
        "part": home,
        "kept": len(kept),
        "of": len(use.reap),
        "experts": kept.tolist(),
        "importance_kept": use.reap[kept].sum().item() / reap if reap else 1.0,
        "tokens_kept": use.tokens[kept].sum().item() / tokens if tokens else 1.0,
    }


def _chosen(scores: Tensor, count: int, groups: int) -> Tensor:
    """The experts that stay, equally many of each group: int64 [count], ascending."""
    size = len(scores) // groups
    found = [highest(part, count // groups) + number * size for number, part in enumerate(torch.split(scores, size))]
    return torch.cat(found)


def _layer(place: str, lists: Sequence[str]) -> str:
    """The decoder layer that a module is in."""
    prefix = next((name for name in lists if place.startswith(f"{name}.")), "")
    return f"{prefix}.{place.removeprefix(prefix + '.').partition('.')[0]}"


def homes_between(
    model: PreTrainedModel, old: Mapping[str, Piece], smaller: PreTrainedModel, new: Mapping[str, Piece]
) -> list[str]:
    """The modules that hold the experts of a model, of which a smaller one has fewer.

    Args:
        old, new: the pieces of both; they may be on the meta device.

    Raises:
        ShrinkError: something else than experts and the rows of routers changes.
    """
    whole, small = (experts_of(text_part(one.config.to_dict())) for one in (model, smaller))
    gone = [old[name] for name in old.keys() - new.keys()]
    wrong = [piece.name for piece in gone if piece.expert is None] + [*(new.keys() - old.keys())]
    for name in old.keys() & new.keys():
        sizes = set(zip(old[name].tensor.shape, new[name].tensor.shape, strict=True))
        if any(mine != theirs and (mine, theirs) != (whole, small) for mine, theirs in sizes):
            wrong.append(name)
    homes = {piece.place for piece in gone}
    around = {home.rpartition(".")[0] for home in homes}
    near = [piece for piece in old.values() if any(piece.place.startswith(place) for place in around)]
    table = [piece.name for piece in near if piece.tensor.dim() and not piece.tensor.is_floating_point()]
    if own := sorted(home for home in homes if _OWN_MODULE.search(home)):
        raise ShrinkError(
            "experts must share the parameters of one module, as transformers loads them, to be scored and cut; in "
            f"{type(model).__name__} {own[0]} is a module of its own. Load the family by transformers' own code, or "
            "cut layers or ffn."
        )
    if wrong or table or not homes:
        reason = f"{min(wrong)} changes otherwise" if wrong else f"{min(table)} is a table" if table else "none goes"
        raise ShrinkError(
            f"with fewer experts nothing but experts and the rows of routers must change; in {type(model).__name__} "
            f"{reason}. Its experts cannot be cut."
        )
    return sorted(homes)


# -- scores ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def expert_use(
    model: PreTrainedModel,
    homes: Sequence[str],
    experts: int,
    windows: Tensor,
    *,
    calibrated: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, ExpertUse]:
    """What the experts of each layer do with calibration tokens.

    Lasby et al. 2025 (REAP, arXiv 2510.13999), equation 9: S_j = 1/|X_j| · Σ_{x ∈ X_j} g_j(x) · ‖f_j(x)‖₂, where X_j
    are the tokens that are routed to expert j, g_j(x) is its router weight as the layer uses it, renormalised where the
    family renormalises, and f_j(x) its output. Windows run one by one; sums are float64.

    Args:
        homes: names of the modules that hold the experts of a layer.
        experts: how many each holds.
        windows: token ids, int64 [windows, length].
        calibrated: called with the windows that are done, and their number.

    Raises:
        ShrinkError: such a module is not called with hidden states, experts and weights; or never.
    """
    sums = {home: torch.zeros(experts, dtype=torch.float64) for home in homes}
    tokens = {home: torch.zeros(experts, dtype=torch.int64) for home in homes}

    def watched(home: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            states, chosen, weights = _routed(module, given, named)
            for expert in torch.unique(chosen).tolist():
                if expert < experts:  # beyond are those that do nothing
                    rows, places = torch.where(chosen == expert)  # [routed]
                    output = _output(module, states[rows], expert, chosen, weights)  # [routed, hidden]
                    norms = in_double(output).norm(dim=-1) * in_double(weights[rows, places])  # [routed]
                    sums[home][expert] += norms.sum().cpu()
                    tokens[home][expert] += len(rows)

        return hook

    with evaluating(model), ExitStack() as stack:
        for home in homes:
            module = model.get_submodule(home)
            hook = module.register_forward_pre_hook(watched(home, module), with_kwargs=True)
            stack.callback(hook.remove)
        for number, window in enumerate(windows.to(model.device)):
            model(input_ids=window[None], use_cache=False)
            calibrated(number + 1, len(windows))
    return {home: ExpertUse(sums[home] / tokens[home].clamp(min=1), tokens[home]) for home in homes}


def _routed(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [tokens, hidden], the experts of each token and their weights, both [tokens, chosen].

    Raises:
        ShrinkError: the experts are called otherwise.
    """
    values = [*inspect.signature(module.forward).bind(*given, **named).arguments.values()]
    if len(values) >= 3 and all(isinstance(value, Tensor) for value in values[:3]):
        states, chosen, weights = values[0].flatten(0, -2), values[1], values[2]
        if chosen.shape == weights.shape and len(chosen) == len(states) and not chosen.is_floating_point():
            return states, chosen, weights
    raise ShrinkError(
        f"experts must be called with hidden states, the experts of each token and their weights to be scored; "
        f"{type(module).__name__} is not. Its experts cannot be cut."
    )


def _output(module: nn.Module, states: Tensor, expert: int, chosen: Tensor, weights: Tensor) -> Tensor:
    """What one expert makes of some tokens, by the code of its family: [tokens, hidden]."""
    alone = chosen.new_full((len(states), 1), expert)
    output: Tensor = module.forward(states, alone, weights.new_ones(len(states), 1))
    return output.reshape(len(states), -1)


# -- the twin --------------------------------------------------------------------------------------------------------


class _Disabled(TorchFunctionMode):
    """Gives minus infinity for the router logits of the experts that went, while it is entered.

    Args:
        routers: what has an entry for each expert, and those that went: matrices of routers, and what is added to their
            logits or scores.
        experts: how many there are.
    """

    def __init__(self, routers: Sequence[tuple[Piece, Tensor]], experts: int) -> None:
        super().__init__()
        self._matrices = {piece.tensor.data_ptr(): gone for piece, gone in routers if piece.matrix}
        self._added = [(piece.tensor, gone) for piece, gone in routers if not piece.matrix]
        self._experts = experts
        self.seen = False  # a router: those that turn their weights into another type first are not

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            for given in (*args, *(kwargs or {}).values()):
                gone = self._matrices.get(given.data_ptr()) if isinstance(given, Tensor) else None
                if gone is not None:
                    self.seen = True
                    return found.index_fill(-1, gone.to(found.device), float("-inf"))
        return found

    @contextmanager
    def mask(self) -> Iterator[None]:
        """The context in which the experts are disabled."""
        before = [tensor.clone() for tensor, _ in self._added]
        try:
            for tensor, gone in self._added:
                tensor.index_fill_(list(tensor.shape).index(self._experts), gone.to(tensor.device), float("-inf"))
            with self:
                yield
        finally:
            for (tensor, _), values in zip(self._added, before, strict=True):
                tensor.copy_(values)
