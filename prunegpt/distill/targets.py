"""What a student is to match: the labels, and a teacher that was run or read from a cache."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunegpt.distill.head import Head
from prunegpt.errors import DistillationError

IGNORE = -100  # the label of a position that predicts nothing


def shift_labels(labels: Tensor) -> Tensor:
    """Labels [batch, length] moved one to the left and flattened, [batch · length]: what each position has to predict.

    The last position of a row predicts nothing and is ignored, so hidden states are used as they are, flattened.
    """
    return pad(labels, (0, 1), value=IGNORE)[:, 1:].flatten()  # [batch · length]


@dataclass(frozen=True)
class HiddenTargets:
    """A teacher that was run: its final hidden states [tokens, width] and its output layer."""

    hidden: Tensor
    head: Head

    @property
    def tokens(self) -> int:
        return self.hidden.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(self.hidden[rows], self.head)

    def cast(self, dtype: torch.dtype) -> Self:
        """The same with the products in another dtype; the head's matrix is copied for it."""
        return type(self)(self.hidden, self.head.cast(dtype))

    def check(self, student: int, vocabulary: int | None) -> None:
        """Raises DistillationError where the vocabularies differ, the student's given, or `vocabulary` exceeds one."""
        sizes = student, self.head.rows(self.hidden)
        if vocabulary is None and sizes[0] != sizes[1]:
            raise DistillationError(
                f"student and teacher must have the same vocabulary; their heads have {sizes[0]} and {sizes[1]} rows. "
                "Where they differ by padding only, give the number of tokens they share as `vocabulary`."
            )
        if vocabulary is not None and vocabulary > min(sizes):
            raise DistillationError(
                f"the shared vocabulary must not exceed either head, got {vocabulary} for heads of {sizes[0]} and "
                f"{sizes[1]} rows."
            )


@dataclass(frozen=True)
class TopKTargets:
    """A teacher read from a cache.

    Attributes:
        indices: its k most probable tokens at each position, [tokens, k].
        log_probabilities: of these, and last of all other tokens together, [tokens, k + 1], at the temperature of the
            loss.
    """

    indices: Tensor
    log_probabilities: Tensor

    @property
    def tokens(self) -> int:
        return self.indices.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(self.indices[rows], self.log_probabilities[rows])

    def check(self, student: int, vocabulary: int | None) -> None:
        """Raises DistillationError where the arrays do not belong together, or k reaches the student's vocabulary."""
        k = self.indices.shape[1]
        if self.log_probabilities.shape != (self.tokens, k + 1):
            raise DistillationError(
                "k indices per token need k + 1 log-probabilities, the last for the rest of the vocabulary, got k = "
                f"{k} and {list(self.log_probabilities.shape)} for {self.tokens} tokens."
            )
        if k >= (vocabulary or student):
            raise DistillationError(
                f"the cached tokens must leave a rest of the vocabulary; k is {k} and the head has {student} rows. "
                "Take a smaller k."
            )


Targets = HiddenTargets | TopKTargets
