"""How a pruning spec spends its sparsity over a model's tensors, for one-shot and gradual pruning alike."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.lm.views import WeightView
from prunegpt.pruning.allocation.explicit import explicit
from prunegpt.pruning.allocation.owl import outlier_ratio, owl
from prunegpt.pruning.allocation.sensitivity import sensitivity
from prunegpt.pruning.criteria.wanda import wanda
from prunegpt.pruning.selection import Scope
from prunegpt.pruning.statistics.collect import block_statistics, evaluating
from prunegpt.spec.patterns import fixed_sparsity
from prunegpt.spec.schema import PruneSpec
from prunegpt.stages.base import State

_SCOPES: Mapping[str, Scope] = {"uniform": "tensor", "row": "row", "global": "global"}
_OWL_OPTIONS = ("multiple", "limit")


def scope_of(spec: PruneSpec) -> Scope | None:
    """What scores are compared over; None leaves it to the method."""
    return _SCOPES.get(spec.allocation) if isinstance(spec.allocation, str) else None


def sparsities_of(
    spec: PruneSpec, state: State, views: Mapping[str, WeightView], calibration: Tensor | None
) -> dict[str, float] | None:
    """Parameter name -> sparsity, where the allocation gives each tensor its own; None where all have the same.

    Raises:
        PruningError: a pattern matches nothing, or the allocation lacks what it needs.
    """
    sizes = {name: view.parameter.numel() for name, view in views.items()}
    wanted = spec.sparsity if spec.sparsity is not None else fixed_sparsity(spec.pattern)
    if isinstance(spec.allocation, Mapping):
        return explicit(sizes, 0.0 if wanted is None else wanted, sparsities=spec.allocation)
    if spec.allocation not in ("owl", "sensitivity"):
        return None
    if wanted is None:
        raise PruningError(f"allocation {spec.allocation} spreads a sparsity, but none is given. Set sparsity.")
    if spec.allocation == "sensitivity":
        return _by_sensitivity(spec, views, sizes, wanted)
    if calibration is None:
        raise PruningError("allocation owl looks at activations, but there is no calibration text.")
    return owl(
        sizes,
        wanted,
        outlier_ratios=_outlier_ratios(spec, state, views, calibration),
        blocks={name: view.block for name, view in views.items()},
        limit=float(spec.options.get("limit", 0.08)),
    )


def _outlier_ratios(
    spec: PruneSpec, state: State, views: Mapping[str, WeightView], calibration: Tensor
) -> dict[int, float]:
    ratios: dict[int, float] = {}
    multiple = float(spec.options.get("multiple", 5.0))
    with torch.no_grad(), evaluating(state.model):
        for group in block_statistics(state.model, views, calibration, gram=False, propagate=False):
            scores: dict[int, list[Tensor]] = {}
            for name, found in group.items():
                block = views[name].block
                if block is not None:
                    scores.setdefault(block, []).append(wanda(views[name].matrix, input_norm=found.input_norm))
            ratios |= {block: outlier_ratio(tensors, multiple=multiple) for block, tensors in scores.items()}
    return ratios


def _by_sensitivity(
    spec: PruneSpec, views: Mapping[str, WeightView], sizes: Mapping[str, int], wanted: float
) -> dict[str, float]:
    """The measured curve of each decoder block, spent where it costs least; every tensor of a block alike."""
    if not spec.curves:
        raise PruningError(
            "allocation sensitivity needs the measured curve of each block: name the sweep that measured them in "
            "options.sweep, and run that sweep first."
        )
    blocks: dict[str, int] = {}
    for name, view in views.items():
        blocks[str(view.block)] = blocks.get(str(view.block), 0) + sizes[name]
    by_block = sensitivity(blocks, wanted, curves={block: spec.curves.get(block, ()) for block in blocks})
    return {name: by_block[str(view.block)] for name, view in views.items()}


def method_options(spec: PruneSpec) -> dict[str, object]:
    """The options that are the method's, without those of the allocation."""
    taken = {"owl": _OWL_OPTIONS, "sensitivity": ("sweep",)}.get(str(spec.allocation), ())
    return {name: value for name, value in spec.options.items() if name not in taken}
