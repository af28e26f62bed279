"""What a model consists of, as far as pruning asks, and how much of it a request covers. No torch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from prunegpt.errors import listed
from prunegpt.spec.names import Matrix, parameter_of

COVERED = 0.95  # of the weights outside the embeddings; below, what stays dense is listed
_LISTED = 4  # of it


class Coverage(NamedTuple):
    """How much of a model some matrices are."""

    share: float  # of the decoder's weights outside its embeddings and its head, 0 to 1
    outside: Mapping[str, int]  # parameters that are not among them, name -> weights, largest first

    @property
    def note(self) -> str:
        """What stays dense, in words; empty where that is little."""
        if self.share >= COVERED:
            return ""
        largest = listed((f"{name} ({count:,})" for name, count in self.outside.items()), _LISTED)
        return (
            f"{self.share:.1%} of the decoder's weights outside the embeddings are in the pruned tensors; the rest "
            f"stays dense: {largest}"
        )


class Outline(NamedTuple):
    """The weights of a model, from outside.

    Attributes:
        matrices: what a request may select, in module order.
        weights: parameter of the decoder -> its number of weights. Embeddings, the head, and vectors, such as biases
            and norms, are left out.
    """

    matrices: Sequence[Matrix]
    weights: Mapping[str, int]

    def coverage(self, chosen: Iterable[str]) -> Coverage:
        """How much of the model the matrices of these names are."""
        names = set(chosen)
        inside: Counter[str] = Counter()
        for matrix in self.matrices:
            if matrix.name in names:
                inside[parameter_of(matrix.name)] += matrix.shape[0] * matrix.shape[1]
        rest = {name: count - inside[name] for name, count in self.weights.items()}
        total = sum(self.weights.values())
        largest = sorted(((name, count) for name, count in rest.items() if count > 0), key=lambda item: -item[1])
        return Coverage((total - sum(rest.values())) / max(total, 1), dict(largest))
