"""Training: `job` says what a stage will do before it starts, `trainer` does it, `run` compares the two at the end."""

from prunegpt.training.job import TrainingJob
from prunegpt.training.run import Interrupted, Outcome, train

__all__ = ["Interrupted", "Outcome", "TrainingJob", "train"]
