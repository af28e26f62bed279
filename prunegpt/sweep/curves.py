"""Sensitivity curves from the store: what pruning one block alone does to the loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunegpt.planning.filled import SensitivityCurve, SensitivityCurvesOf
    from prunegpt.records import TrialResult
    from prunegpt.root import Root


def curves_in(root: "Root") -> "SensitivityCurvesOf":
    """A function from a sweep's name to the curves that its one-block, one-shot trials measured."""

    def curves(sweep: str) -> "Mapping[str, SensitivityCurve]":
        from prunegpt.errors import StoreError
        from prunegpt.records import comparable
        from prunegpt.store import Store

        try:
            with Store.open(root, create=False) as store:
                results = store.results(sweep)
        except StoreError:
            return {}
        points: dict[str, dict[float, float]] = {}
        for result in comparable(results):
            if (found := point_of(result)) is not None:
                block, sparsity, increase = found
                points.setdefault(block, {})[sparsity] = increase
        return {block: tuple(sorted(curve.items())) for block, curve in points.items()}

    return curves


def point_of(result: "TrialResult") -> tuple[str, float, float] | None:
    """Block, sparsity, and the loss against the stage before; None where the trial did not prune one block at once."""
    if result.state != "finished" or len(result.stages) < 2:
        return None
    before, last = result.stages[-2:]
    if last.kind != "prune" or last.sparsity is None or len(last.sparsity.layers) != 1:
        return None
    one, two = before.evaluation, last.evaluation
    if one is None or two is None or one.comparison_key != two.comparison_key or one.loss is None or two.loss is None:
        return None
    return str(last.sparsity.layers[0]), last.sparsity.pruned, two.loss - one.loss
