"""One-shot pruning: the whole model at once, from its weights or from what calibration text does in it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from prunegpt.errors import PruningError, unknown
from prunegpt.lm.views import WeightView
from prunegpt.pruning.criteria.base import Criterion
from prunegpt.pruning.patterns import Pattern, parse_pattern
from prunegpt.pruning.selection import Scope, select_masks
from prunegpt.pruning.solvers.base import Solver, option_names, reconstruction_error
from prunegpt.pruning.statistics import (
    GradientStatistics,
    LayerStatistics,
    block_statistics,
    check_windows,
    collect_statistics,
    evaluating,
    gradient_statistics,
)
from prunegpt.registry import CRITERIA, SOLVERS

_ACTIVATIONS = frozenset({"input_norm", "gram"})
_GRADIENTS = frozenset({"gradient", "squared_gradient", "gradients"})


@dataclass(frozen=True)
class LayerRow:
    """What became of one layer.

    Attributes:
        name: of the parameter.
        weights: how many it has.
        sparsity: the share that is pruned now, counted from the mask.
        error: the share of the layer's output that is lost on the calibration text, as in
            :class:`~prunegpt.pruning.solvers.base.Solution`; None where no Gram matrix was at hand.
        damping: the solver's; None for a criterion.
        seconds: to choose the mask and to solve, without calibration.
        notes: what the user should know of.
    """

    name: str
    weights: int
    sparsity: float
    error: float | None
    damping: float | None
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class OneShotResult:
    """What one-shot pruning did; the model itself holds the weights.

    Attributes:
        masks: parameter name -> bool [out, in] on the CPU, True = kept, in the order of the views.
        rows: one a layer, in the order in which they were pruned.
        tokens: calibration tokens that were used; 0 for a method that looks at weights only.
        seconds: of it all, calibration included.
        notes: about the run as a whole; those of layers are in the rows.
    """

    masks: Mapping[str, Tensor]
    rows: tuple[LayerRow, ...]
    tokens: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """How many weights the pruned layers have."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """The share of them that is pruned, counted from the masks."""
        kept = sum(int(torch.count_nonzero(mask)) for mask in self.masks.values())
        return 1 - kept / self.weights


Progress = Callable[[int, int, str], None]


@torch.no_grad()
def prune_oneshot(
    model: nn.Module,
    views: Mapping[str, WeightView],
    *,
    method: str,
    sparsity: float | None = None,
    pattern: Pattern | str = "unstructured",
    allocation: str | Mapping[str, float] | None = None,
    calibration: Tensor | None = None,
    masks: Mapping[str, Tensor] | None = None,
    propagate: bool = True,
    statistics: Path | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    micro_batch: int | None = None,
    offload: bool | None = None,
    progress: Progress | None = None,
) -> OneShotResult:
    """Prunes a model in place.

    A method that looks at activations goes through the decoder blocks in order: it runs the calibration windows through
    a block, prunes the block, and runs them again, so that the next block is calibrated on what the pruned ones give it
    (Frantar & Alistarh 2023, arXiv 2301.00774, section 4; Sun et al. 2023, arXiv 2306.11695, section 3). Only the
    hidden states between two blocks are held. Gradients are taken once, of the model as it comes.

    Args:
        model: a causal language model.
        views: the layers to prune, by parameter name.
        method: name of a criterion or a solver.
        sparsity: share of the weights of the views that is zero afterwards; None where the pattern fixes it, or the
            allocation gives all.
        pattern: the shape of sparsity, or its name.
        allocation: `uniform` (each tensor alike), `row` (each output row alike), `global` (one threshold; criteria
            only), or the sparsity of each view by name; None = `row` for criteria that compare within rows, else
            `uniform`.
        calibration: token ids, int64 [windows, length]; needed by methods that look at more than weights.
        masks: parameter name -> bool [out, in], True = kept: what is pruned already stays pruned and counts.
        propagate: whether blocks see the outputs of pruned blocks. If not, statistics are those of the dense model. A
            `global` allocation needs all scores before it prunes, so it never propagates.
        statistics: where statistics of the dense model are kept and looked for, one folder a model and calibration;
            used without `propagate` only.
        seed: of methods that draw random numbers.
        options: further arguments of the method, such as `damping`.
        micro_batch: calibration windows at a time; None = by the number of tokens. Changes results by rounding only.
        offload: whether hidden states are held on the CPU; None = where the model is on an accelerator.
        progress: called with layers done, layers in all, and the name of the last one.

    Raises:
        PruningError: the request does not fit the model or itself, or the numbers do not allow it.
    """
    started = perf_counter()
    part = _method(method)
    chosen_pattern = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    targets = _targets(views, chosen_pattern, sparsity, allocation)
    scope = _scope(part, allocation)
    options = dict(options or {})
    _check_options(part, options)
    notes: list[str] = []
    if scope == "global" and propagate and part.needs & _ACTIVATIONS:
        propagate = False
        notes.append("global compares scores of all layers, so statistics are those of the dense model")

    needs = part.needs
    windows = check_windows(calibration, method) if needs & (_ACTIVATIONS | _GRADIENTS) else None
    run = _Run(views, chosen_pattern, targets, masks or {}, options, progress)
    with evaluating(model), ExitStack() as cleanup:
        evidence = _Evidence(torch.Generator().manual_seed(seed), None)
        if needs & _GRADIENTS and windows is not None:
            folder = (
                Path(cleanup.enter_context(TemporaryDirectory(prefix="prunegpt-"))) if "gradients" in needs else None
            )
            evidence = _Evidence(evidence.generator, gradient_statistics(model, views, windows, samples=folder))
        groups: Iterator[Mapping[str, LayerStatistics | None]] = iter([dict.fromkeys(views)])
        if needs & _ACTIVATIONS and windows is not None:
            if statistics is not None and not propagate:
                store = collect_statistics(model, windows, statistics, micro_batch=micro_batch, offload=offload)
                groups = store.blocks(views)
            else:
                groups = block_statistics(
                    model,
                    views,
                    windows,
                    gram="gram" in needs,
                    propagate=propagate,
                    micro_batch=micro_batch,
                    offload=offload,
                )
        if isinstance(part, Solver):
            run.solve(part, evidence, groups)
        else:
            run.select(part, evidence, groups, scope)
    return OneShotResult(
        masks={name: run.chosen[name] for name in views},
        rows=tuple(run.rows),
        tokens=0 if windows is None else windows.numel(),
        seconds=perf_counter() - started,
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What methods may need beside the weight."""

    generator: torch.Generator
    gradients: GradientStatistics | None

    def of(self, view: WeightView, statistics: LayerStatistics | None, needs: frozenset[str]) -> dict[str, Any]:
        """The needed keyword arguments for one layer, on its device."""
        found: dict[str, Any] = {"generator": self.generator}
        if statistics is not None:
            found |= {"input_norm": statistics.input_norm, "gram": statistics.gram}
        if self.gradients is not None:
            found["gradient"] = self.gradients.gradient[view.name]
            found["squared_gradient"] = self.gradients.squared_gradient[view.name]
            if "gradients" in needs:
                found["gradients"] = self.gradients.samples(view.name)
        device = view.matrix.device
        return {
            need: found[need].to(device) if isinstance(found[need], Tensor) else found[need] for need in sorted(needs)
        }


class _Run:
    """The layers of one call, pruned one after the other."""

    def __init__(
        self,
        views: Mapping[str, WeightView],
        pattern: Pattern,
        targets: Mapping[str, float],
        masks: Mapping[str, Tensor],
        options: Mapping[str, Any],
        progress: Progress | None,
    ) -> None:
        self.views, self.pattern, self.targets, self.options, self.progress = views, pattern, targets, options, progress
        self.masks = {name: mask.to(views[name].matrix.device) for name, mask in masks.items() if name in views}
        self.chosen: dict[str, Tensor] = {}
        self.rows: list[LayerRow] = []

    def solve(
        self, solver: Solver, evidence: _Evidence, groups: Iterator[Mapping[str, LayerStatistics | None]]
    ) -> None:
        for group in groups:
            factors: dict[int, Any] = {}  # by the Gram matrix: layers with the same input share the work on it
            for name, statistics in group.items():
                started = perf_counter()
                view = self.views[name]
                given = evidence.of(view, statistics, solver.needs)
                gram = given.get("gram")
                if gram is not None and solver.factorise is not None:
                    if id(gram) not in factors:
                        factors[id(gram)] = solver.factor_of(gram, self.options)
                    given["factor"] = factors[id(gram)]
                solution = solver.solve(
                    view.matrix,
                    sparsity=self.targets[name],
                    pattern=self.pattern,
                    mask=self.masks.get(name),
                    **given,
                    **self.options,
                )
                view.matrix.copy_(solution.weight)
                self._finish(name, solution.mask, solution.error, solution.damping, started, solution.notes)

    def select(
        self,
        criterion: Criterion,
        evidence: _Evidence,
        groups: Iterator[Mapping[str, LayerStatistics | None]],
        scope: Scope,
    ) -> None:
        waiting: dict[str, Tensor] = {}  # scores, of all layers where they are compared
        started = perf_counter()
        for group in groups:
            for name, statistics in group.items():
                if scope != "global":
                    started = perf_counter()
                given = evidence.of(self.views[name], statistics, criterion.needs)
                waiting[name] = criterion.score(self.views[name].matrix, **given, **self.options)
                if scope != "global":
                    self._apply(waiting, scope, {name: statistics}, started)
                    waiting = {}
        if waiting:
            self._apply(waiting, scope, {}, started)

    def _apply(
        self,
        scores: Mapping[str, Tensor],
        scope: Scope,
        statistics: Mapping[str, LayerStatistics | None],
        started: float,
    ) -> None:
        masks = select_masks(scores, self.targets, pattern=self.pattern, scope=scope, masks=self.masks)
        for name, mask in masks.items():
            matrix = self.views[name].matrix  # [out, in]
            found = statistics.get(name)
            pruned = matrix * mask  # [out, in]
            error = None
            if found is not None and found.gram is not None:
                error = reconstruction_error(pruned, matrix, found.gram.to(matrix.device))
            matrix.copy_(pruned)
            self._finish(name, mask, error, None, started, ())

    def _finish(
        self,
        name: str,
        mask: Tensor,
        error: float | None,
        damping: float | None,
        started: float,
        notes: tuple[str, ...],
    ) -> None:
        self.chosen[name] = mask.cpu()
        sparsity = 1 - int(torch.count_nonzero(mask)) / mask.numel()
        self.rows.append(LayerRow(name, mask.numel(), sparsity, error, damping, perf_counter() - started, notes))
        if self.progress is not None:
            self.progress(len(self.rows), len(self.views), name)


def _method(name: str) -> Criterion | Solver:
    if name not in CRITERIA and name not in SOLVERS:
        raise PruningError(unknown("pruning method", name, [*CRITERIA.names(), *SOLVERS.names()]))
    part: Criterion | Solver = (SOLVERS if name in SOLVERS else CRITERIA).load(name)
    if "movement" in part.needs:
        raise PruningError(
            f"{name} looks at how weights move in training, so it cannot prune in one shot. Use it as the criterion of "
            f"finetune.prune, or choose another method here, such as magnitude or taylor."
        )
    return part


def _targets(
    views: Mapping[str, WeightView],
    pattern: Pattern,
    sparsity: float | None,
    allocation: str | Mapping[str, float] | None,
) -> dict[str, float]:
    """The sparsity of each view."""
    if not views:
        raise PruningError("one-shot pruning needs at least one layer, but got none. Widen the targets.")
    if not isinstance(allocation, Mapping):
        return dict.fromkeys(views, pattern.target(sparsity))
    missing, strange = [name for name in views if name not in allocation], [n for n in allocation if n not in views]
    if missing or strange:
        raise PruningError(
            f"an allocation must give a sparsity to each layer that is pruned and to no other, but {len(missing)} are "
            f"missing and {len(strange)} are not pruned; the first is {(missing + strange)[0]}."
        )
    return {name: pattern.target(allocation[name]) for name in views}


def _scope(part: Criterion | Solver, allocation: str | Mapping[str, float] | None) -> Scope:
    """What a method compares."""
    if isinstance(allocation, str) and allocation not in ("uniform", "row", "global"):
        raise PruningError(
            f"an allocation is uniform, row, global, or the sparsity of each layer by name, but got {allocation!r}. "
            f"Compute owl and sensitivity first (prunegpt.pruning.allocation) and give what they return."
        )
    if isinstance(part, Solver):
        if allocation in ("row", "global"):
            raise PruningError(
                f"{part.name} chooses weights within a layer while it solves, so it cannot compare by {allocation}. "
                f"Use uniform, owl or sensitivity."
            )
        return "tensor"
    if allocation == "row" or (allocation != "global" and allocation != "uniform" and part.rowwise):
        return "row"
    return "global" if allocation == "global" else "tensor"


def _check_options(part: Criterion | Solver, options: Mapping[str, Any]) -> None:
    valid = part.options if isinstance(part, Solver) else option_names(part.score, {"weight", *part.needs})
    for name in options:
        if name not in valid:
            raise PruningError(unknown(f"option of {part.name}", name, valid))
