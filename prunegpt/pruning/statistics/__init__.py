"""Calibration statistics of a model's layers, for methods that use more than weights.

`activations` moves windows through the decoder layers, `inputs` sums up what layers are given, `regional` the gradients
of what decoder layers give, `collect` does all for a model, `store` keeps the result on disk, `gradients` asks the
loss, and `layerwise` does so one decoder layer at a time.
"""

from prunegpt.pruning.statistics.activations import check_windows
from prunegpt.pruning.statistics.collect import block_statistics, evaluating
from prunegpt.pruning.statistics.gradients import GradientStatistics, gradient_statistics
from prunegpt.pruning.statistics.inputs import LayerStatistics
from prunegpt.pruning.statistics.store import StatisticsStore, collect_statistics, statistics_key

__all__ = [
    "GradientStatistics",
    "LayerStatistics",
    "StatisticsStore",
    "block_statistics",
    "check_windows",
    "collect_statistics",
    "evaluating",
    "gradient_statistics",
    "statistics_key",
]
