"""What every criterion is: a name, the statistics it needs, and a pure function that scores a weight matrix."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from prunegpt.registry import CRITERIA
from prunegpt.registry import CRITERION_NEEDS as NEEDS


@dataclass(frozen=True)
class Criterion:
    """A rule for which weights count.

    Attributes:
        name: as a spec writes it.
        needs: names of the keyword arguments of `score` beside the weight, all of :data:`NEEDS`:
            `input_norm` [in] is the Euclidean norm of each input feature over the calibration tokens,
            `regional_gradient` [out, in] that of the gradient of the norm of the decoder layer's output over windows,
            `gradient` [out, in] the gradient of the loss, `movement` [out, in] the sum of -weight·gradient over the
            optimizer steps so far, `squared_gradient` [out, in] the mean of the squared gradient,
            `generator` a seeded torch.Generator.
        score: `score(weight, **needed)` -> float32 [out, in], higher = more important; modifies nothing.
        rowwise: whether scores compare only within an output row, so that each row is pruned alike.
    """

    name: str
    needs: frozenset[str]
    score: Callable[..., Tensor]
    rowwise: bool = False

    def __post_init__(self) -> None:
        if unknown := self.needs - NEEDS:
            raise ValueError(f"a criterion may need {sorted(NEEDS)}; {self.name!r} asks for {sorted(unknown)}")


def builtin(name: str, score: Callable[..., Tensor]) -> Criterion:
    """The criterion that the registry declares under this name."""
    entry = CRITERIA.entry(name)
    return Criterion(name, entry.needs, score, rowwise=entry.scope == "row")
