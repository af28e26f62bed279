"""One-shot pruning: the whole model at once, from its weights or from calibration data.

`request` checks what was asked for, `evidence` brings what the method needs, `pipeline` prunes, `checkpoint` keeps what
is solved, and `result` is the outcome.
"""

from prunegpt.pruning.oneshot.checkpoint import SolvedLayers
from prunegpt.pruning.oneshot.pipeline import prune_oneshot
from prunegpt.pruning.oneshot.result import LayerRow, OneShotResult, OnLayer

__all__ = ["LayerRow", "OnLayer", "OneShotResult", "SolvedLayers", "prune_oneshot"]
