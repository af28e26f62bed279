"""Norms and Gram matrices of the inputs of weight matrices over calibration data.

Inputs are seen where torch multiplies by a weight, whatever calls it: a layer, an expert of a fused parameter, or code
that uses a weight without its layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunegpt.errors import PruningError
from prunegpt.lm.device import in_double, sums_in
from prunegpt.lm.views import WeightView
from prunegpt.pruning.statistics.activations import StopForward

# Functions that multiply by a matrix: the places of inputs and weight among their arguments, and their names.
_PRODUCTS: Mapping[Any, tuple[tuple[int, str], tuple[int, str]]] = {
    torch.nn.functional.linear: ((0, "input"), (1, "weight")),
    torch.addmm: ((1, "mat1"), (2, "mat2")),
    torch.nn.functional.embedding: ((0, "input"), (1, "weight")),
    **dict.fromkeys((torch.mm, Tensor.mm, torch.bmm, Tensor.bmm), ((0, "input"), (1, "mat2"))),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), ((0, "input"), (1, "other"))),
}
PANEL = 384  # columns of a Gram matrix that are summed together; the part below the diagonal panels is mirrored


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What calibration shows of one layer: its inputs over all tokens, and maybe the gradient within its region.

    Attributes:
        input_norm: float32 [in], the Euclidean norm of each input feature over the tokens. (The reference of Wanda
            takes the root of the mean over sequences: the same but for a factor that all layers share.)
        input_mean: float32 [in], the mean of each input feature over the tokens.
        gram: XᵀX, the sum over tokens, float32 [in, in]; None where it was not asked for. Layers with the same input
            hold the same tensor.
        tokens: how many tokens the layer has seen.
        regional_gradient: float32 [out, in], see :class:`~prunegpt.pruning.statistics.regional.RegionalGradients`; None
            where it was not asked for.
    """

    input_norm: Tensor
    input_mean: Tensor
    gram: Tensor | None
    tokens: int
    regional_gradient: Tensor | None = None

    @property
    def input_variance(self) -> Tensor:
        """The variance of each input feature over the tokens, float32 [in], at least what rounding leaves of it."""
        square = self.input_norm.square() / max(self.tokens, 1)  # [in]
        return torch.maximum(square - self.input_mean.square(), 1e-6 * square)


class _Sums:
    """Sums over the tokens of one input, which one layer or several have."""

    def __init__(self, width: int, device: torch.device, gram: bool) -> None:
        self.squares = torch.zeros(width, dtype=sums_in(device), device=device)  # [in]
        self.sums = torch.zeros_like(self.squares)  # [in]
        self.upper = (
            torch.zeros(width, width, device=device) if gram else None
        )  # [in, in], right of the panels' diagonal
        self.tokens = 0
        self._whole = False  # whether `upper` has been made the Gram matrix, after the last token

    def add(self, inputs: Tensor) -> None:
        """Adds inputs, [tokens, in]."""
        inputs = inputs.float()  # [tokens, in]
        self.tokens += inputs.shape[0]
        self.sums += inputs.sum(dim=0)
        if self.upper is None:
            self.squares += inputs.square().sum(dim=0)
            return
        for start in range(0, inputs.shape[1], PANEL):
            panel = inputs[:, start : start + PANEL]  # [tokens, panel]
            self.upper[start : start + PANEL, start:].addmm_(panel.t(), inputs[:, start:])

    def statistics(self) -> LayerStatistics:
        mean = (self.sums / max(self.tokens, 1)).float()  # [in]
        if self.upper is None:
            return LayerStatistics(self.squares.sqrt().float(), mean, None, self.tokens)
        if not self._whole:
            self._whole = True
            self.upper.triu_()
            self.upper += self.upper.triu(1).t()  # [in, in]; in place, as that of a wide layer takes a gigabyte
        return LayerStatistics(self.upper.diagonal().sqrt(), mean, self.upper, self.tokens)


class _Products(TorchFunctionMode):
    """Sees every product with one of some matrices, while it is entered.

    Args:
        matrices: name -> the matrix, as stored.
        experts: names of the matrices of one parameter, by the address of its first one.
        seen: called with the name and the inputs, [..., in].
    """

    def __init__(
        self,
        matrices: Mapping[str, Tensor],
        experts: Mapping[int, Sequence[str]],
        seen: Callable[[str, Tensor], None],
    ) -> None:
        super().__init__()
        self._names = {tensor.data_ptr(): name for name, tensor in matrices.items()}
        self._experts = experts
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            inputs, weight = (args[place] if place < len(args) else kwargs.get(name) for place, name in _PRODUCTS[func])
            if isinstance(inputs, Tensor) and inputs.data_ptr() in self._names and inputs.dim() == 2:
                inputs, weight = weight.transpose(-1, -2), inputs  # W @ X, as some recurrent models do
            if isinstance(weight, Tensor) and isinstance(inputs, Tensor) and weight.data_ptr() in self._names:
                names = self._experts.get(weight.data_ptr(), ())
                if weight.dim() == 3 and len(names) == weight.shape[0]:  # a batch of products, one per expert
                    for name, part in zip(names, inputs, strict=True):
                        self._seen(name, part)
                elif weight.dim() == 2:
                    self._seen(self._names[weight.data_ptr()], inputs)
        return func(*args, **kwargs)


class InputCollector:
    """Sums up the inputs of weight matrices. What several of them are given as one tensor is summed once.

    Args:
        views: the matrices.
        gram: whether XᵀX is summed, and not only its diagonal.
        stop_early: whether a forward pass is broken off (:class:`StopForward`) when every matrix has seen its input.
            The first one is not, to learn whether a matrix is used more than once.
    """

    def __init__(self, views: Mapping[str, WeightView], *, gram: bool, stop_early: bool = False) -> None:
        self._views = views
        self._gram = gram
        self._stop_early = stop_early
        self._inputs: list[tuple[str, Tensor]] = []  # of this micro-batch
        self._sums: dict[tuple[str, ...], _Sums] = {}  # by the matrices that had the input in common
        self._once: bool | None = None  # whether every pass so far used every matrix once

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Products are seen while the context lasts."""
        matrices = {name: view.matrix for name, view in self._views.items()}
        experts: dict[int, list[str]] = {}
        for name, view in self._views.items():
            if view.expert is not None:
                experts.setdefault(view.parameter.data_ptr(), []).append(name)
        with _Products(matrices, experts, self._see):
            yield

    @torch.no_grad()
    def end_batch(self) -> None:
        """Sums up the inputs of a micro-batch. (None is overwritten by then: training could not work if it were.)"""
        once = sorted(name for name, _ in self._inputs) == sorted(self._views)
        self._once = once if self._once is None else self._once and once
        groups: dict[tuple[Any, ...], tuple[list[str], Tensor]] = {}
        for name, inputs in self._inputs:
            place = (inputs.data_ptr(), inputs.shape, inputs.stride(), inputs.dtype)
            groups.setdefault(place, ([], inputs))[0].append(name)
        for names, inputs in groups.values():
            rows = inputs.reshape(-1, inputs.shape[-1])  # [tokens, in]
            key = tuple(names)
            if key not in self._sums:
                self._sums[key] = _Sums(rows.shape[1], rows.device, self._gram)
            self._sums[key].add(rows)
        self._inputs.clear()

    def results(self) -> dict[str, LayerStatistics]:
        """The statistics of every matrix; those that always had the same input share one object.

        The statistics of an expert that no token was routed to are of 0 tokens, as if its inputs had equal size and
        did not correlate.

        Raises:
            PruningError: another matrix saw no token.
        """
        parts: dict[tuple[tuple[str, ...], ...], LayerStatistics] = {}
        results = {}
        for name, view in self._views.items():
            keys = tuple(key for key in self._sums if name in key)
            if not keys and view.expert is not None:
                width, device = view.matrix.shape[1], view.matrix.device
                gram = torch.eye(width, device=device) if self._gram else None
                ones, none = torch.ones(width, device=device), torch.zeros(width, device=device)
                results[name] = LayerStatistics(ones, none, gram, 0)
                continue
            if not keys:
                raise PruningError(
                    f"calibration must reach every layer that is pruned; no token came to {name}. Exclude it, or "
                    "calibrate on more data."
                )
            if keys not in parts:
                parts[keys] = _total([self._sums[key].statistics() for key in keys for _ in range(key.count(name))])
            results[name] = parts[keys]
        return results

    def _see(self, name: str, inputs: Tensor) -> None:
        if not inputs.is_floating_point():
            raise PruningError(
                f"{name} is an embedding, whose inputs are token ids: methods that use activations cannot "
                f"prune it. Leave it out of targets, or use magnitude."
            )
        if inputs.numel():
            self._inputs.append((name, inputs))
        if self._stop_early and self._once and {seen for seen, _ in self._inputs} == set(self._views):
            raise StopForward


def _total(parts: list[LayerStatistics]) -> LayerStatistics:
    """The sum of disjoint sets of tokens."""
    if len(parts) == 1:
        return parts[0]
    squares = torch.stack([in_double(part.input_norm).square() for part in parts]).sum(dim=0)  # [in]
    tokens = sum(part.tokens for part in parts)
    sums = torch.stack([in_double(part.input_mean) * part.tokens for part in parts]).sum(dim=0)  # [in]
    grams = [part.gram for part in parts if part.gram is not None]
    return LayerStatistics(
        squares.sqrt().float().to(parts[0].input_norm.device),
        (sums / max(tokens, 1)).float().to(parts[0].input_mean.device),
        torch.stack(grams).sum(dim=0) if grams else None,
        tokens,
    )
