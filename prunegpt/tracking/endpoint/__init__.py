"""The part of the W&B protocol that agents and runs use, answered from a root: no cloud, no account."""
