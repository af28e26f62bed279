"""The loop over layers: look, choose, repair, write back."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from prunegpt.errors import Interrupted, PruningError
from prunegpt.lm.device import exact_products
from prunegpt.lm.views import WeightView
from prunegpt.pruning.choose import Groups, choose
from prunegpt.pruning.evidence import evidence
from prunegpt.pruning.oneshot.checkpoint import SolvedLayers
from prunegpt.pruning.oneshot.request import check_request
from prunegpt.pruning.oneshot.result import LayerRow, OneShotResult, OnLayer
from prunegpt.pruning.patterns import Pattern
from prunegpt.pruning.refining.base import Refinement
from prunegpt.pruning.repair import Repair
from prunegpt.pruning.statistics import check_windows, evaluating
from prunegpt.registry import ACTIVATIONS, GRADIENTS
from prunegpt.spec.code import method_label
from prunegpt.spec.repair import RepairSpec
from prunegpt.spec.streaming import streaming_problem

_NUMBER = re.compile(r"[\d.e+-]*\d")


@torch.no_grad()
@exact_products()
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
    place: torch.device | None = None,
    progress: OnLayer = lambda *_: None,
    calibrated: Callable[[int, int], None] = lambda *_: None,
    solved: SolvedLayers | None = None,
    scratch: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    refine: Refinement | None = None,
    repair: RepairSpec | None = None,
) -> OneShotResult:
    """Prunes a model in place.

    A method that uses activations goes through the decoder layers in order: it runs the calibration windows through
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
        calibration: token ids, int64 [windows, length]; needed by methods that use more than weights.
        masks: parameter name -> bool [out, in], True = kept: what is pruned already stays pruned and counts.
        propagate: whether blocks see the outputs of pruned blocks. If not, statistics are those of the dense model. A
            `global` allocation needs all scores before it prunes, so it never propagates.
        statistics: where statistics of the dense model are kept and looked for, one folder a model and calibration;
            used without `propagate` only.
        seed: of methods that draw random numbers.
        options: further arguments of the method, such as `damping`.
        micro_batch: calibration windows at a time; None = by the number of tokens. Changes results by rounding only.
        offload: whether hidden states are held on the CPU; None = where the model is on an accelerator.
        place: where decoder layers are computed and solved, one at a time, while the model stays where it is: a device
            that need not hold it. None = where the model is. Masks and weights are the same. Sums of gradients are in
            files then.
        progress: called with layers done, layers in all, and the name of the last one; first with those that an
            earlier attempt has solved, and no name.
        calibrated: called with what is done of a calibration that comes before the first layer, and with the whole.
        solved: what an earlier attempt at the same pruning has solved: it is taken over, and added to; beside it are
            the gradients of a pass that was broken off. An allocation `global` solves all layers at once, and has
            nothing else to take over.
        scratch: folder for what gradients need of the disk where nothing is kept, emptied before and removed after;
            None = one for temporary files.
        stop: asked after every layer.
        refine: what betters the masks that a criterion chooses, by the same calibration windows.
        repair: how decoder layers are repaired once their matrices are pruned, on the calibration windows.

    Raises:
        Interrupted: `stop` said so; what is solved is saved.
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
        refine=refine,
    )
    needs = request.part.needs | (refine.needs if refine else frozenset())
    named = method_label(method)
    if place and (problem := streaming_problem(named, needs, request.scope, repair=repair is not None)):
        raise PruningError(problem)
    before = SolvedLayers(None) if solved is None or request.scope == "global" else solved
    windows = None
    if needs & (ACTIVATIONS | GRADIENTS) or repair:
        own = request.part.needs & (ACTIVATIONS | GRADIENTS)
        windows = check_windows(calibration, method if own else "refine" if refine else "repair")
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
        solved=before,
        calibrated=calibrated,
        kept=solved.beside("gradients") if solved is not None else None,
        scratch=solved.beside("samples") if solved is not None else scratch,
        place=place,
        in_order=repair is not None,
    )
    held = {name: mask.to(views[name].parameter.device) for name, mask in (masks or {}).items() if name in views}
    chosen: dict[str, Tensor] = {}
    rows: dict[str, LayerRow] = {}
    open_rows: list[LayerRow] = []  # of the decoder layer that is still to be repaired

    def done(row: LayerRow, mask: Tensor) -> None:
        chosen[row.name] = mask.cpu()
        rows[row.name] = row

    def repaired(found: Mapping[str, tuple[float, float]]) -> None:
        for row in open_rows:
            rows[row.name] = replace(row, repaired=found.get(row.name))
            before.add(rows[row.name], views[row.name].matrix, chosen[row.name])
        open_rows.clear()
        before.save()

    with evaluating(model), closing(groups):
        around: Groups = groups
        if repair is not None:
            assert windows is not None
            repairing = Repair(repair, model, views, windows, seed=seed, offload=offload, stop=stop)
            around = repairing.around(groups, masks=chosen, solved=before, repaired=repaired)
        choices = choose(
            request.part,
            before.unsolved(around, done),
            targets=request.targets,
            pattern=request.pattern,
            scope=request.scope,
            masks=held,
            options=request.options,
            refine=refine,
        )
        progress(len(before), len(views), "")
        try:
            for choice in choices:
                mask, name = choice.mask, choice.name
                views[name].matrix.mul_(mask)
                sparsity = 1 - int(torch.count_nonzero(mask)) / mask.numel()
                row = LayerRow(name, mask.numel(), sparsity, choice.error, choice.damping, choice.seconds, choice.notes)
                done(row, mask)
                progress(len(rows), len(views), name)
                if repair is None:
                    matrix = views[name].matrix  # [out, in]
                    before.add(row, matrix if place is None else matrix.cpu(), chosen[name])
                    before.save()
                else:
                    open_rows.append(row)
                if stop():
                    raise Interrupted(f"stopped after {len(rows)} of {len(views)} matrices")
        except Interrupted as stopped:
            before.save(now=True)
            kept = "those are kept"
            if request.scope == "global":
                kept = "none is kept, as all are pruned at once"
            elif repair is not None:
                kept = f"{len(before)} of {len(views)} are kept, those of decoder layers that are repaired"
            raise Interrupted(f"{stopped}; {kept}") from None
    return OneShotResult(
        masks={name: chosen[name] for name in views},
        rows=tuple(rows.values()),
        tokens=0 if windows is None else windows.numel(),
        seconds=perf_counter() - started,
        notes=(*request.notes, *_together(rows.values()), *_repaired(repair, rows.values())),
    )


def _repaired(repair: RepairSpec | None, rows: Iterable[LayerRow]) -> Iterator[str]:
    """What the reconstruction of decoder layers came to."""
    found = [row.repaired for row in rows if row.repaired is not None]
    if repair is not None and found:
        before, after = (fmean(values) for values in zip(*found, strict=True))
        yield (
            f"repair {repair.scope}: squared distance of outputs from the dense model's, as a share of their square, "
            f"{before:.4g} in the first pass and {after:.4g} in the last, mean over {len(found)} matrices"
        )


def _together(rows: Iterable[LayerRow]) -> Iterator[str]:
    """What layers have notes of, each kind of note once: the first as it is, and how many layers have such a one."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        for note in row.notes:
            kinds.setdefault(_NUMBER.sub("", note), []).append((row.name, note))
    for found in kinds.values():
        name, note = found[0]
        yield f"{name}: {note}" + (f"; and {len(found) - 1} more like it" if len(found) > 1 else "")
