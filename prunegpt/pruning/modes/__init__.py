"""Modes of pruning in training beside the usual one: how much of a pruned weight lives on, and which come back."""
