"""Weights & Biases: what a sweep tells it, sweeps that it decides, and the same without its cloud."""

from prunegpt.tracking.tracker import open_trackers

__all__ = ["open_trackers"]
