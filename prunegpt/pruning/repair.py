"""Reconstruction of pruned decoder layers: kept weights are trained until a layer gives what the dense one gave.

Criteria and solvers see one matrix at a time. Here the matrices of a decoder layer move together, and make up for what
the pruned layers before them have lost (Guo et al. 2024, "EBFT: Effective and Block-Wise Fine-Tuning for Sparse LLMs",
arXiv 2402.12419; Shin et al. 2024, "Rethinking Pruning Large Language Models", arXiv 2406.15524).
"""

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from prunegpt.errors import Interrupted, PruningError
from prunegpt.lm.views import WeightView, decoder_lists
from prunegpt.pruning.evidence import Evidence
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.statistics.activations import StopForward, WalkError, capture
from prunegpt.spec.repair import RepairSpec, mixes_tokens

_WARM_UP = 0.05  # of the steps
_BETAS = (0.9, 0.95)  # of Adam


@dataclass(frozen=True, eq=False)
class _Part:
    """What is trained at a time."""

    views: Sequence[WeightView]
    module: nn.Module  # whose output is compared
    targets: list[Tensor]  # what the dense one gave, by micro-batch: [windows, length, width]


class Repair:
    """Repairs decoder layers in order, each once its matrices are pruned.

    Two streams of hidden states walk through the layers: what the dense model makes of the calibration windows, and
    what the pruned and repaired layers make of them. The kept weights of a layer are trained by Adam so that its output
    in the second stream comes near that in the first, by :func:`distance`. What the mask prunes has no gradient, and
    stays zero. Of weights in a type of fewer digits Adam has a copy in float32: steps would be rounded away.

    Args:
        spec: what is asked for.
        model: a causal language model in evaluation mode.
        views: the matrices that are pruned.
        windows: calibration token ids, int64 [windows, length].
        seed: of the order of the windows.
        offload: whether hidden states are held on the CPU; None = where the model is on an accelerator.
        stop: asked after every step; True ends the pruning.

    Raises:
        PruningError: the decoder layers cannot be run by themselves, or a matrix is not in one of them.
    """

    def __init__(
        self,
        spec: RepairSpec,
        model: nn.Module,
        views: Mapping[str, WeightView],
        windows: Tensor,
        *,
        seed: int = 0,
        offload: bool | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if apart := [name for name, view in views.items() if view.block is None or view.shared]:
            raise PruningError(
                f"repair needs matrices that belong to one decoder layer each, got {apart[0]}. Leave it out of "
                "targets, or prune it in a stage of its own."
            )
        self._spec, self._views, self._seed, self._stop = spec, views, seed, stop
        self._blocks, *further = decoder_lists(model).values()
        try:
            if further:
                raise WalkError("its decoder layers are in several lists.")
            self._dense = capture(model, self._blocks, windows, micro_batch=spec.batch_size, offload=offload)
        except WalkError as error:
            raise PruningError(
                f"repair must run decoder layers one after the other; {type(model).__name__} does not allow it: "
                f"{error} Remove repair."
            ) from error
        self._sparse = self._dense.copy()

    def around(
        self,
        groups: Iterable[Mapping[str, Evidence]],
        *,
        masks: Mapping[str, Tensor],
        solved: Container[str],
        repaired: Callable[[Mapping[str, tuple[float, float]]], None],
    ) -> Iterator[Mapping[str, Evidence]]:
        """The groups again, one for each decoder layer, which is repaired when the next one is asked for.

        Args:
            groups: what is to be pruned.
            masks: parameter name -> bool [out, in], True = kept, of what is pruned so far; the caller adds to it.
            solved: matrices that an earlier attempt has repaired, whose weights the caller writes into the model.
            repaired: called when the matrices of a layer have their last weights, with what it came to, by matrix: the
                squared distance of outputs from the dense ones, as a share of their square, in the first pass over the
                windows and in the last.

        Raises:
            Interrupted: `stop` said so.
        """
        following = 0
        for group in groups:
            by_block: dict[int, dict[str, Evidence]] = {}
            for name, known in group.items():
                by_block.setdefault(self._views[name].block or 0, {})[name] = known
            for block, layers in sorted(by_block.items()):
                for passed in range(following, block):
                    self._dense.run(passed, keep=True)
                    self._sparse.run(passed, keep=True)
                following = block + 1
                parts = self._parts(block, [self._views[name] for name in layers])
                self._look(block, parts)
                over = all(name in solved for name in layers)
                yield layers
                if not over:
                    found: dict[str, tuple[float, float]] = {}
                    for part in parts:
                        found |= dict.fromkeys((view.name for view in part.views), self._repair(block, part, masks))
                    repaired(found)
                self._sparse.run(block, keep=True)

    def _parts(self, block: int, views: list[WeightView]) -> list[_Part]:
        """What is trained of a decoder layer, one after the other."""
        if self._spec.scope == "block":
            return [_Part(views, self._blocks[block], [])]
        found = []
        for scope in ("attention", "mlp"):
            if self._spec.scope not in (scope, "sublayers"):
                continue
            inside = [
                child
                for name, child in self._blocks[block].named_children()
                if mixes_tokens(name) == (scope == "attention")
            ]
            owned = {id(part): child for child in inside for part in child.modules()}
            own = [view for view in views if id(view.module) in owned]
            if own:
                found.append(_Part(own, owned[id(own[-1].module)], []))
        return found

    def _look(self, block: int, parts: Sequence[_Part]) -> None:
        """Moves the dense stream on, and takes note of what is to be approached."""
        with ExitStack() as hooks:
            for part in parts:
                hooks.enter_context(part.module.register_forward_hook(_taking(part.targets)))
            self._dense.run(block, keep=True)

    def _repair(self, block: int, part: _Part, masks: Mapping[str, Tensor]) -> tuple[float, float]:
        """Trains the kept weights of a part; the mean distance of the first pass over the windows, and of the last.

        Raises:
            Interrupted: `stop` said so.
            PruningError: the distance is not finite.
        """
        spec = self._spec
        steps = spec.epochs * len(self._sparse)
        generator = torch.Generator().manual_seed(hash((self._seed, block)) % 2**63)
        distances: list[float] = []
        with _training(self._blocks[block], part.views, masks) as (parameters, kept), torch.enable_grad():
            exact = [one if one.dtype == torch.float32 else one.detach().float() for one in parameters]
            copied = [pair for pair in zip(parameters, exact, strict=True) if pair[0] is not pair[1]]
            optimizer = torch.optim.Adam(exact, lr=spec.learning_rate, betas=_BETAS)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
            for _ in range(spec.epochs):
                for batch in torch.randperm(len(self._sparse), generator=generator).tolist():
                    target = part.targets[batch]
                    output = self._output(block, part.module, batch)  # [windows, length, width]
                    loss = distance(output.float(), target.to(output.device).float())
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    for parameter, mask in zip(parameters, kept, strict=True):
                        assert parameter.grad is not None
                        mask.apply(parameter.grad)
                    for parameter, copy in copied:
                        assert parameter.grad is not None
                        copy.grad, parameter.grad = parameter.grad.float(), None
                    optimizer.step()
                    schedule.step()
                    for parameter, copy in copied:
                        parameter.data.copy_(copy)
                    distances.append(loss.item())
                    if self._stop():
                        raise Interrupted(f"stopped in the repair of decoder layer {block}")
        if not all(map(math.isfinite, distances)):
            raise PruningError(
                f"repair must stay finite; the distance in decoder layer {block} is not. Lower repair.learning_rate, "
                f"which is {spec.learning_rate:g}."
            )
        each = len(self._sparse)
        return fmean(distances[:each]), fmean(distances[-each:])

    def _output(self, block: int, module: nn.Module, batch: int) -> Tensor:
        """What a module of the pruned layer makes of a micro-batch of the second stream."""
        seen: list[Tensor] = []
        with module.register_forward_hook(_taking(seen, stop=True)), suppress(StopForward):
            self._sparse.output(block, batch)
        return seen[0]


def distance(output: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of ‖y - y*‖² / max(‖y*‖², m), where m is the median of ‖y*‖² over the tokens.

    The papers take the plain square. There the first token of a window, whose hidden state is a hundred times longer
    than others in many models (Sun et al. 2024, "Massive Activations in Large Language Models", arXiv 2402.17762),
    outweighs all others together.

    Args:
        output: y, [windows, length, width].
        target: y*, of the same shape.
    """
    square = target.square().sum(dim=-1)  # [windows, length]
    floor = square.median().clamp(min=torch.finfo(square.dtype).tiny)
    return ((output - target).square().sum(dim=-1) / square.clamp(min=floor)).mean()


def _taking(seen: list[Tensor], *, stop: bool = False) -> Callable[[nn.Module, Any, Any], None]:
    """A forward hook that keeps outputs; with `stop` the forward pass is broken off there."""

    def look(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])
        if stop:
            raise StopForward

    return look


@contextmanager
def _training(
    block: nn.Module, views: Sequence[WeightView], masks: Mapping[str, Tensor]
) -> Iterator[tuple[list[nn.Parameter], list[Mask]]]:
    """The parameters of some matrices, which alone of a layer have gradients meanwhile, and what is kept of each.

    Of a parameter that holds the matrices of many experts, those that were not pruned keep none of their gradient.
    """
    parameters = list({id(view.parameter): view.parameter for view in views}.values())
    kept = [torch.zeros_like(parameter, dtype=torch.bool) for parameter in parameters]
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    for view in views:
        view.oriented(kept[places[id(view.parameter)]]).copy_(masks[view.name])
    before = {parameter: parameter.requires_grad for parameter in block.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in places)
        yield parameters, [Mask(mask) for mask in kept]
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None


def _share(step: int, steps: int) -> float:
    """The share of the learning rate at a step: up along a line, down along a cosine."""
    return min(1.0, (step + 1) / max(1.0, _WARM_UP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
