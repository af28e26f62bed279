"""Weights & Biases: logging of sweeps, sweeps that it schedules, and the same without its cloud."""
