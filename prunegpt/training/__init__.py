"""Training: `job` says what a stage will do before it starts, `trainer` does it, `run` compares the two at the end."""

from prunegpt.training.job import TrainingJob
from prunegpt.training.run import TrainingOutcome, train

__all__ = ["TrainingJob", "TrainingOutcome", "train"]
