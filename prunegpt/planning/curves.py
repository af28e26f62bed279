"""Allocation `sensitivity`: the measured curve of each block, put into the stages that ask for it."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from prunegpt.errors import PruneGPTError
from prunegpt.spec.schema import FinetuneSpec, PruneSpec, StageConfig

SensitivityCurve = tuple[tuple[float, float], ...]  # (sparsity, loss increase in nats per token), ascending
_Pruning = TypeVar("_Pruning", bound=PruneSpec)
SensitivityCurvesOf = Callable[[str], Mapping[str, SensitivityCurve]]  # sweep -> layer index as text -> its curve


def with_curves(config: StageConfig, curves_of: SensitivityCurvesOf | None) -> StageConfig:
    """The stage with the curves of the sweep that `options.sweep` names, where its allocation asks for them.

    Raises:
        PruneGPTError: no sweep is named, or it has not measured single blocks.
    """
    if isinstance(config, PruneSpec):
        return _measured(config, curves_of)
    if not isinstance(config, FinetuneSpec) or config.prune is None:
        return config
    return config.model_copy(update={"prune": _measured(config.prune, curves_of)})


def _measured(prune: _Pruning, curves_of: SensitivityCurvesOf | None) -> _Pruning:
    if prune.allocation != "sensitivity" or prune.curves:
        return prune
    sweep = prune.options.get("sweep")
    if not isinstance(sweep, str):
        raise PruneGPTError(
            "allocation sensitivity spends the budget by measured curves; options.sweep does not name the sweep that "
            "measured them. Set options: {sweep: NAME}."
        )
    curves = curves_of(sweep) if curves_of else {}
    if not curves:
        raise PruneGPTError(
            f"allocation sensitivity needs finished trials that prune one block each; sweep {sweep!r} has none. Run it "
            "first: one trial per layer, pruned with `layers: [N]`."
        )
    return prune.model_copy(update={"curves": curves})
