"""Allocation `sensitivity`: the measured curve of each block, put into the stages that ask for it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from prunegpt.errors import PruneGPTError
from prunegpt.spec.expand import Configuration
from prunegpt.spec.schema import PruneSpec, StageSpec

Curve = tuple[tuple[float, float], ...]  # (sparsity, loss increase in nats a token), ascending
CurvesOf = Callable[[str], Mapping[str, Curve]]  # sweep -> block index as text -> its curve


def with_curves(item: Configuration, curves_of: CurvesOf | None) -> Configuration:
    """The configuration with the curves of the sweep that `options.sweep` names.

    Raises:
        PruneGPTError: no sweep is named, or it has not measured single blocks.
    """
    stages = tuple(
        StageSpec.model_validate({stage.kind: _filled(stage.config, curves_of)}) for stage in item.spec.stages
    )
    return replace(item, spec=item.spec.model_copy(update={"stages": stages}))


def _filled(config: Any, curves_of: CurvesOf | None) -> Any:
    if isinstance(config, PruneSpec):
        return _measured(config, curves_of)
    if config.prune is not None:
        return config.model_copy(update={"prune": _measured(config.prune, curves_of)})
    return config


def _measured(prune: PruneSpec, curves_of: CurvesOf | None) -> PruneSpec:
    if prune.allocation != "sensitivity" or prune.curves:
        return prune
    sweep = prune.options.get("sweep")
    if not isinstance(sweep, str):
        raise PruneGPTError(
            "allocation sensitivity spends the budget by measured curves, but options.sweep does not name the sweep "
            "that measured them. Set options: {sweep: NAME}."
        )
    curves = curves_of(sweep) if curves_of else {}
    if not curves:
        raise PruneGPTError(
            f"allocation sensitivity needs finished trials that prune one block each, but sweep {sweep!r} has none. "
            f"Run it first, such as sweeps/layer-sensitivity.yaml."
        )
    return prune.model_copy(update={"curves": curves})
