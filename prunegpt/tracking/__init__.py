"""Weights & Biases: what a sweep tells it, sweeps that it decides, and the same without its cloud."""
