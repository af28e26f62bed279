"""What every solver is: a name, the statistics it needs, and a pure function from a weight matrix to a pruned one."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.pruning.patterns import NOfM, Pattern, Unstructured
from prunegpt.pruning.threshold import zeros_for
from prunegpt.registry import SOLVER_NEEDS as NEEDS
from prunegpt.registry import SOLVERS


@dataclass(frozen=True, eq=False)
class Solution:
    """A pruned and repaired layer.

    Attributes:
        weight: float32 [out, in], zero where `mask` is False.
        mask: bool [out, in], True = kept.
        error: what the layer's output lost, tr(D·G·Dᵀ) / tr(W·G·Wᵀ) with D the change of the weight W and G the Gram
            matrix of its inputs; for a solver without a Gram matrix, see there.
        damping: what was added to the diagonal that the solver inverts, as a share of its mean.
        notes: what the user should know of, such as damping that had to be raised.
    """

    weight: Tensor
    mask: Tensor
    error: float
    damping: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Solver:
    """A way to prune and repair one layer.

    Attributes:
        name: as a spec writes it.
        needs: which statistics `solve` takes, of :data:`NEEDS`: `gram` [in, in] is XᵀX summed over the calibration
            tokens, `gradients` [samples, out, in] is the gradient of the loss on each calibration window, on the CPU.
        solve: `solve(weight, *, sparsity, pattern, mask, **needed, **options) -> Solution`; modifies nothing.
        factorise: `factorise(gram, **options)`: the part of the work that depends on the Gram matrix alone. Its result
            may be given to `solve` as `factor`, for all layers with the same input.
    """

    name: str
    needs: frozenset[str]
    solve: Callable[..., Solution]
    factorise: Callable[..., Any] | None = field(default=None)

    def __post_init__(self) -> None:
        if strange := self.needs - NEEDS:
            raise ValueError(f"a solver may need {sorted(NEEDS)}; {self.name!r} asks for {sorted(strange)}")

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that `solve` takes."""
        return tuple(SOLVERS.read(self).options)

    def factor_of(self, gram: Tensor, options: Mapping[str, Any]) -> Any:
        """`factorise(gram)` with those of the options that it takes; None where the solver has no such step."""
        if self.factorise is None:
            return None
        taken = inspect.signature(self.factorise).parameters
        return self.factorise(gram, **{name: value for name, value in options.items() if name in taken})


def builtin(name: str, solve: Callable[..., Solution], factorise: Callable[..., Any] | None = None) -> Solver:
    """The solver that the registry declares under this name."""
    return Solver(name, SOLVERS.entry(name).needs, solve, factorise)


def target_zeros(solver: str, weight: Tensor, sparsity: float | None, pattern: Pattern) -> tuple[float, int]:
    """The sparsity and the number of zeros that a solver has to reach.

    Raises:
        PruningError: the pattern is not one that solvers prune to, or does not go with the sparsity or the shape.
    """
    if not isinstance(pattern, (Unstructured, NOfM)):
        raise PruningError(
            f"{solver} prunes to unstructured and N:M patterns, got {pattern.name}. Use a criterion such as magnitude "
            "or wanda for blocks."
        )
    target = pattern.target(sparsity)
    if isinstance(pattern, NOfM):
        nothing_kept = torch.zeros_like(weight, dtype=torch.bool)
        pattern.check(nothing_kept)  # refuses an input axis that M does not divide
        if pattern.sparsity - target > 1e-6:
            raise PruningError(
                f"{solver} prunes {pattern.name} to its full sparsity of {pattern.sparsity:g}; {target:g} was asked "
                "for. Leave the sparsity out, or choose a criterion for a sparsity in between."
            )
    return target, zeros_for(weight.numel(), target)


def quotas(sizes: Sequence[int], pruned: Sequence[int], zeros: int) -> list[int]:
    """How many zeros each group of weights gets, so that they are `zeros` in all and as even as what is pruned allows.

    A group that has more zeros already than its share keeps them, and the others share what is left by size.

    Args:
        sizes: weights of each group.
        pruned: weights of each group that are pruned already.
        zeros: of all groups together. Where `pruned` sums to more, that is the result.
    """
    open_groups = list(range(len(sizes)))
    left = zeros
    while full := [
        group
        for group in open_groups
        if pruned[group] * sum(sizes[other] for other in open_groups) > left * sizes[group]
    ]:
        left -= sum(pruned[group] for group in full)
        open_groups = [group for group in open_groups if group not in full]
    counts = list(pruned)
    total = sum(sizes[group] for group in open_groups)
    seen = given = 0
    for group in open_groups:
        seen += sizes[group]
        upto = (2 * left * seen + total) // (2 * total)  # left · seen / total, rounded to the nearest
        counts[group] = max(pruned[group], upto - given)
        given += counts[group]
    return counts


def reconstruction_error(weight: Tensor, original: Tensor, gram: Tensor) -> float:
    """tr(D·G·Dᵀ) / tr(W·G·Wᵀ), D = weight - original, W = original: 0 = nothing lost, 1 = as bad as a layer of zeros.

    Args:
        weight: [out, in], the pruned layer.
        original: [out, in].
        gram: [in, in].
    """
    original = original.float()
    change = weight.float() - original  # [out, in]
    lost = torch.sum((change @ gram) * change, dtype=torch.float64)
    whole = torch.sum((original @ gram) * original, dtype=torch.float64)
    return float((lost / whole).clamp(min=0)) if float(whole) > 0 else 0.0
