"""PruneGPT: what does pruning do to a GPT-style language model, and does distillation win it back?"""

__version__ = "0.1.0"
