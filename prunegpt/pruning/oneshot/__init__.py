"""One-shot pruning: the whole model at once, from its weights or from what calibration text does in it.

`request` checks what was asked for, `evidence` brings what the method needs, `pipeline` prunes, and `result` is what
comes of it.
"""

from prunegpt.pruning.oneshot.pipeline import prune_oneshot
from prunegpt.pruning.oneshot.result import LayerRow, OneShotResult, Progress

__all__ = ["LayerRow", "OneShotResult", "Progress", "prune_oneshot"]
