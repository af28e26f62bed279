"""Norms and Gram matrices of the layers' inputs over calibration data, summed by hooks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunegpt.errors import PruningError
from prunegpt.lm.views import WeightView
from prunegpt.pruning.statistics.activations import StopForward

_PANEL = 384  # columns of a Gram matrix that are summed together; the part below the diagonal panels is mirrored


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """The inputs of one layer over all calibration tokens.

    Attributes:
        input_norm: float32 [in], the Euclidean norm of each input feature over the tokens. (The reference of Wanda
            takes the root of the mean over sequences: the same but for a factor that all layers share.)
        gram: XᵀX, the sum over tokens, float32 [in, in]; None where it was not asked for. Layers with the same input
            hold the same tensor.
        tokens: how many tokens the layer has seen.
    """

    input_norm: Tensor
    gram: Tensor | None
    tokens: int


class _Sums:
    """Sums over the tokens of one input, which one layer or several have."""

    def __init__(self, width: int, device: torch.device, gram: bool) -> None:
        self.squares = torch.zeros(width, dtype=torch.float64, device=device)  # [in]
        self.upper = (
            torch.zeros(width, width, device=device) if gram else None
        )  # [in, in], right of the panels' diagonal
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Adds inputs, [tokens, in]."""
        inputs = inputs.float()  # [tokens, in]
        self.tokens += inputs.shape[0]
        if self.upper is None:
            self.squares += inputs.square().sum(dim=0)
            return
        for start in range(0, inputs.shape[1], _PANEL):
            panel = inputs[:, start : start + _PANEL]  # [tokens, panel]
            self.upper[start : start + _PANEL, start:].addmm_(panel.t(), inputs[:, start:])

    def statistics(self) -> LayerStatistics:
        if self.upper is None:
            return LayerStatistics(self.squares.sqrt().float(), None, self.tokens)
        gram = self.upper.triu() + self.upper.triu(1).t()  # [in, in]
        return LayerStatistics(gram.diagonal().sqrt(), gram, self.tokens)


class InputCollector:
    """Forward hooks that sum up the inputs of layers. What several layers are given as one tensor is summed once.

    Args:
        views: the layers, Linear or Conv1D.
        gram: whether XᵀX is summed, and not only its diagonal.
        stop_early: whether a forward pass is broken off (:class:`StopForward`) when every layer has seen its input. The
            first one is not, to learn whether a layer is used more than once.
    """

    def __init__(self, views: Mapping[str, WeightView], *, gram: bool, stop_early: bool = False) -> None:
        self._views = views
        self._gram = gram
        self._stop_early = stop_early
        self._inputs: list[tuple[str, Tensor]] = []  # of this micro-batch
        self._sums: dict[tuple[str, ...], _Sums] = {}  # by the layers that had the input in common
        self._once: bool | None = None  # whether every pass so far used every layer once

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the layers, while the context lasts."""
        handles = [
            view.module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, view in self._views.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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
        """The statistics of every layer; layers that always had the same input share one object.

        Raises:
            PruningError: a layer saw no token.
        """
        parts: dict[tuple[tuple[str, ...], ...], LayerStatistics] = {}
        results = {}
        for name in self._views:
            keys = tuple(key for key in self._sums if name in key)
            if not keys:
                raise PruningError(
                    f"calibration must reach every layer that is pruned, but no token came to {name}. "
                    f"Exclude it, or calibrate on more data."
                )
            if keys not in parts:
                parts[keys] = _total([self._sums[key].statistics() for key in keys for _ in range(key.count(name))])
            results[name] = parts[keys]
        return results

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            if not inputs.is_floating_point():
                raise PruningError(
                    f"{name} is an embedding, whose inputs are token ids: activation-aware methods cannot "
                    f"prune it. Leave it out of targets, or use magnitude."
                )
            self._inputs.append((name, inputs))
            if self._stop_early and self._once and {seen for seen, _ in self._inputs} == set(self._views):
                raise StopForward

        return hook


def _total(parts: list[LayerStatistics]) -> LayerStatistics:
    """The sum of disjoint sets of tokens."""
    if len(parts) == 1:
        return parts[0]
    squares = torch.stack([part.input_norm.double().square() for part in parts]).sum(dim=0)  # [in]
    grams = [part.gram for part in parts if part.gram is not None]
    return LayerStatistics(
        squares.sqrt().float(), torch.stack(grams).sum(dim=0) if grams else None, sum(part.tokens for part in parts)
    )
