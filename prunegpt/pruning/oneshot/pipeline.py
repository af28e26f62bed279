"""The loop over layers: look, choose, repair, write back."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from prunegpt.lm.views import WeightView
from prunegpt.pruning.criteria.base import Criterion
from prunegpt.pruning.oneshot.evidence import Evidence, evidence
from prunegpt.pruning.oneshot.request import Request, check_request
from prunegpt.pruning.oneshot.result import LayerRow, OneShotResult, Progress
from prunegpt.pruning.patterns import Pattern
from prunegpt.pruning.selection import select_masks
from prunegpt.pruning.solvers.base import Solver, reconstruction_error
from prunegpt.pruning.statistics import check_windows, evaluating
from prunegpt.registry import ACTIVATIONS, GRADIENTS


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
        PruningError: the request does not fit the model or itself, or the numbers do not allow it. In the latter case
            layers may be pruned already.
    """
    started = perf_counter()
    request = check_request(
        views,
        method=method,
        sparsity=sparsity,
        pattern=pattern,
        allocation=allocation,
        options=options or {},
        propagate=propagate,
    )
    needs = request.part.needs
    windows = check_windows(calibration, method) if needs & (ACTIVATIONS | GRADIENTS) else None
    run = _Run(request, views, masks or {}, progress)
    groups = evidence(
        model,
        views,
        windows,
        needs=needs,
        propagate=request.propagate,
        statistics=statistics,
        seed=seed,
        micro_batch=micro_batch,
        offload=offload,
    )
    with evaluating(model), closing(groups):
        if isinstance(request.part, Solver):
            run.solve(request.part, groups)
        elif request.scope == "global":
            run.select_at_once(request.part, groups)
        else:
            run.select(request.part, groups)
    return OneShotResult(
        masks={name: run.chosen[name] for name in views},
        rows=tuple(run.rows),
        tokens=0 if windows is None else windows.numel(),
        seconds=perf_counter() - started,
        notes=request.notes,
    )


class _Run:
    """The layers of one call, pruned one after the other."""

    def __init__(
        self,
        request: Request,
        views: Mapping[str, WeightView],
        masks: Mapping[str, Tensor],
        progress: Progress | None,
    ) -> None:
        self._request = request
        self._views = views
        self._masks = {name: mask.to(views[name].parameter.device) for name, mask in masks.items() if name in views}
        self._progress = progress
        self.chosen: dict[str, Tensor] = {}
        self.rows: list[LayerRow] = []

    def solve(self, solver: Solver, groups: Iterator[dict[str, Evidence]]) -> None:
        """Prunes and repairs, layer by layer."""
        for group in groups:
            factors: dict[int, Any] = {}  # by the Gram matrix, of which the group holds on to one a distinct input
            for name, found in group.items():
                started = perf_counter()
                given = found.arguments()
                if solver.factorise is not None:
                    if id(found.gram) not in factors:
                        factors[id(found.gram)] = solver.factor_of(given["gram"], self._request.options)
                    given["factor"] = factors[id(found.gram)]
                solution = solver.solve(
                    found.view.matrix,
                    sparsity=self._request.targets[name],
                    pattern=self._request.pattern,
                    mask=self._masks.get(name),
                    **given,
                    **self._request.options,
                )
                found.view.matrix.copy_(solution.weight)
                seconds = perf_counter() - started
                self._finish(name, solution.mask, solution.error, solution.damping, seconds, solution.notes)

    def select(self, criterion: Criterion, groups: Iterator[dict[str, Evidence]]) -> None:
        """Scores and prunes, layer by layer."""
        for group in groups:
            for name, found in group.items():
                started = perf_counter()
                mask = self._masks_of({name: self._score(criterion, found)})[name]  # [out, in]
                matrix = found.view.matrix  # [out, in]
                error = None
                if found.gram is not None:
                    error = reconstruction_error(matrix * mask, matrix, found.gram.to(matrix.device))
                matrix.mul_(mask)
                self._finish(name, mask, error, None, perf_counter() - started, ())

    def select_at_once(self, criterion: Criterion, groups: Iterator[dict[str, Evidence]]) -> None:
        """Scores all layers, and then prunes them by one threshold."""
        scores: dict[str, Tensor] = {}
        seconds = 0.0
        for group in groups:
            started = perf_counter()
            scores |= {name: self._score(criterion, found) for name, found in group.items()}
            seconds += perf_counter() - started
        started = perf_counter()
        masks = self._masks_of(scores)
        seconds += perf_counter() - started
        for name, mask in masks.items():
            self._views[name].matrix.mul_(mask)
            self._finish(name, mask, None, None, seconds / len(masks), ())

    def _score(self, criterion: Criterion, found: Evidence) -> Tensor:
        return criterion.score(found.view.matrix, **found.arguments(), **self._request.options)

    def _masks_of(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return select_masks(
            scores,
            self._request.targets,
            pattern=self._request.pattern,
            scope=self._request.scope,
            masks={name: mask for name, mask in self._masks.items() if name in scores},
        )

    def _finish(
        self,
        name: str,
        mask: Tensor,
        error: float | None,
        damping: float | None,
        seconds: float,
        notes: tuple[str, ...],
    ) -> None:
        self.chosen[name] = mask.cpu()
        sparsity = 1 - int(torch.count_nonzero(mask)) / mask.numel()
        self.rows.append(LayerRow(name, mask.numel(), sparsity, error, damping, seconds, notes))
        if self._progress is not None:
            self._progress(len(self.rows), len(self._views), name)
