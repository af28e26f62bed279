"""What every refinement is: statistics it needs, and a pure function from a mask to one of as many zeros."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prunegpt.pruning.bisection import check_finite
from prunegpt.pruning.patterns import NOfM, Pattern
from prunegpt.registry import REFINEMENTS


@dataclass(frozen=True)
class Refinement:
    """A way to better a mask for given statistics.

    Attributes:
        name: as a spec writes it. Its part is a function of a weight [out, in] and a mask, bool [out, in], True = kept;
            `group` is how many inputs that follow one another share their zeros (M of a pattern N:M, else all), and
            `held`, bool [out, in] or None, is False where a weight stays pruned. It returns a mask that keeps as many
            weights in each group of each row, and modifies nothing.
        options: its further arguments.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """Which statistics it takes."""
        return REFINEMENTS.entry(self.name).needs

    def __call__(
        self, weight: Tensor, mask: Tensor, *, pattern: Pattern, held: Tensor | None, **needed: Tensor
    ) -> Tensor:
        """The mask that it makes of one, bool [out, in].

        Raises:
            PruningError: a statistic is not finite.
        """
        for statistic in needed.values():
            check_finite(statistic)
        group = pattern.group if isinstance(pattern, NOfM) else weight.shape[1]
        refined: Tensor = REFINEMENTS.load(self.name)(weight, mask, group=group, held=held, **needed, **self.options)
        return refined
