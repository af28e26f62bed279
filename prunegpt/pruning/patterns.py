"""Patterns: which weights may be pruned together. A pattern turns scores into a mask of an exact count.

Every pattern is two pure steps around one selection: `pool` gives a score for each unit that is kept or pruned as one,
the lowest units are selected (:mod:`prunegpt.pruning.threshold`), and `spread` gives each weight the fate of its unit.
Ties are pruned in order, row by row.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.pruning.bisection import check_finite
from prunegpt.pruning.threshold import keep_largest, keep_largest_rows, zeros_for
from prunegpt.spec.patterns import read_pattern

_TOLERANCE = 1e-6  # how far a sparsity may be above what a pattern can reach


class Pattern(ABC):
    """A shape of sparsity. Compare patterns by `==`; write them down by `name`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The pattern as :func:`parse_pattern` reads it."""

    @property
    def sparsity(self) -> float | None:
        """The sparsity that the pattern fixes; None where it leaves it open."""
        return None

    @abstractmethod
    def pool(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """The score of each unit, float32 [unit rows, unit columns], from those of the weights, [out, in].

        What `mask` prunes already adds nothing to its unit.
        """

    @abstractmethod
    def pool_mask(self, mask: Tensor) -> Tensor:
        """Which units keep a weight: bool [unit rows, unit columns], from [out, in]."""

    @abstractmethod
    def spread(self, kept: Tensor, shape: torch.Size) -> Tensor:
        """The mask [out, in] of the kept units [unit rows, unit columns]."""

    @abstractmethod
    def check(self, mask: Tensor) -> None:
        """Raises PruningError, saying where, if a mask [out, in] is not of this pattern."""

    def target(self, sparsity: float | None) -> float:
        """The sparsity to prune to: the one given, or the pattern's own where none is.

        Raises:
            PruningError: none is given and the pattern fixes none, or the pattern cannot reach it.
        """
        if sparsity is None:
            if self.sparsity is None:
                raise PruningError(f"the pattern {self.name!r} needs a sparsity between 0 and 1, got none.")
            return self.sparsity
        zeros_for(0, sparsity)  # refuses what is not between 0 and 1
        if self.sparsity is None:
            return sparsity
        if sparsity > self.sparsity + _TOLERANCE:
            raise PruningError(
                f"the pattern {self.name} reaches a sparsity of {self.sparsity:g} at most; {sparsity:g} was asked for. "
                f"Ask for {self.sparsity:g} or leave the sparsity out, or choose a sparser pattern."
            )
        return min(sparsity, self.sparsity)

    def select(
        self, scores: Tensor, sparsity: float | None = None, *, rowwise: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """The mask that prunes the least important units.

        Args:
            scores: [out, in], higher = more important.
            sparsity: the share of units that are pruned, round(units · sparsity) of them; where `rowwise`,
                round(units of a row · sparsity) in each row of units. None = the one the pattern fixes.
            rowwise: whether every row is pruned alike.
            mask: [out, in], True = kept: what it prunes stays pruned and counts. Where it prunes more than is asked,
                it decides.

        Returns:
            bool [out, in], True = kept.

        Raises:
            PruningError: a score is not finite, or the sparsity or the shape does not go with the pattern.
        """
        sparsity = self.target(sparsity)
        pooled = self.pool(scores, mask)  # [unit rows, unit columns]
        pooled_mask = None if mask is None else self.pool_mask(mask)  # [unit rows, unit columns]
        if rowwise:
            kept = keep_largest_rows(pooled, zeros_for(pooled.shape[1], sparsity), mask=pooled_mask)
        else:
            kept = keep_largest(pooled, zeros_for(pooled.numel(), sparsity), mask=pooled_mask)
        chosen = self.spread(kept, scores.shape)  # [out, in]
        return chosen if mask is None else chosen & mask


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any weight, on its own."""

    @property
    def name(self) -> str:
        return "unstructured"

    def pool(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        return scores.float()  # [out, in]

    def pool_mask(self, mask: Tensor) -> Tensor:
        return mask

    def spread(self, kept: Tensor, shape: torch.Size) -> Tensor:
        return kept

    def check(self, mask: Tensor) -> None:
        return


@dataclass(frozen=True)
class NOfM(Pattern):
    """N weights are kept of every M that follow one another along the input axis (2:4 is what GPU kernels take).

    A sparsity below 1 - N/M prunes only among the weights that the full pattern would prune, so that a sparsity
    growing in steps ends in the pattern with nothing to give back. Only the full sparsity makes a mask that
    :meth:`check` accepts.
    """

    kept: int
    group: int

    def __post_init__(self) -> None:
        if not 0 < self.kept < self.group:
            raise PruningError(
                f"a pattern N:M keeps N of every M weights with 0 < N < M, got {self.kept}:{self.group}. Half the "
                "weights in groups of four is 2:4."
            )

    @property
    def name(self) -> str:
        return f"{self.kept}:{self.group}"

    @property
    def sparsity(self) -> float:
        return 1.0 - self.kept / self.group

    def pool(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = scores.float()  # [out, in]
        safe = self._largest_of_groups(scores, mask)  # [out, in]
        return torch.where(safe, torch.finfo(torch.float32).max, scores)  # [out, in]

    def pool_mask(self, mask: Tensor) -> Tensor:
        return mask

    def spread(self, kept: Tensor, shape: torch.Size) -> Tensor:
        return kept

    def select(
        self, scores: Tensor, sparsity: float | None = None, *, rowwise: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """As :meth:`Pattern.select`; at the full sparsity every group loses M - N weights, so that rows are alike."""
        if self.target(sparsity) < self.sparsity - _TOLERANCE:
            return super().select(scores, sparsity, rowwise=rowwise, mask=mask)
        kept = self._largest_of_groups(scores.float(), mask)  # [out, in]
        return kept if mask is None else kept & mask

    def check(self, mask: Tensor) -> None:
        counts = self._groups(mask).sum(dim=-1)  # [out, groups]
        wrong = (counts > self.kept).nonzero()  # [wrong groups, 2]
        if wrong.shape[0]:
            row, group = wrong[0].tolist()
            raise PruningError(
                f"{self.name} keeps at most {self.kept} of {self.group} weights along the input axis; {wrong.shape[0]} "
                f"groups keep more; the first is row {row}, inputs {group * self.group} to "
                f"{(group + 1) * self.group - 1}, with {int(counts[row, group])}."
            )

    def _groups(self, tensor: Tensor) -> Tensor:
        if tensor.dim() != 2 or tensor.shape[1] % self.group:
            raise PruningError(
                f"{self.name} needs an input axis divisible by {self.group}; the matrix is {list(tensor.shape)} ([out, "
                "in]). Leave this tensor out, or choose a group that divides it."
            )
        return tensor.reshape(tensor.shape[0], -1, self.group)  # [out, groups, group]

    def _largest_of_groups(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """The N highest of each group; of equal ones, the last."""
        check_finite(scores)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        columns = self._groups(scores).permute(2, 0, 1).contiguous()  # [group, out, groups]
        beaten = torch.zeros_like(columns, dtype=torch.int16)  # [group, out, groups]: how many of the group rank below
        for first in range(self.group):
            for second in range(first + 1, self.group):
                wins = columns[second] >= columns[first]  # [out, groups]
                beaten[second] += wins
                beaten[first] += ~wins
        kept = beaten >= self.group - self.kept  # [group, out, groups]
        return kept.permute(1, 2, 0).reshape(scores.shape)  # [out, in]


@dataclass(frozen=True)
class Block(Pattern):
    """Tiles of `rows` outputs by `columns` inputs, each scored by the mean of its weights.

    A matrix that the tile does not divide has smaller tiles at its lower and right edges; they count as one tile each,
    so that the sparsity of the weights may then differ a little from that of the tiles.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise PruningError(
                f"a block has at least one output and one input, got [{self.rows}, {self.columns}]. Write [outputs, "
                "inputs], for example [4, 4]."
            )

    @property
    def name(self) -> str:
        return f"[{self.rows}, {self.columns}]"

    def pool(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = scores.float()  # [out, in]
        if mask is not None:
            scores = scores * mask
        area = self._sum(torch.ones_like(scores)) if self._ragged(scores.shape) else self.rows * self.columns
        return self._sum(scores) / area  # [tile rows, tile columns]

    def pool_mask(self, mask: Tensor) -> Tensor:
        return self._sum(mask.float()) > 0  # [tile rows, tile columns]

    def spread(self, kept: Tensor, shape: torch.Size) -> Tensor:
        tall = kept.repeat_interleave(self.rows, dim=0)[: shape[0]]  # [out, tile columns]
        return tall.repeat_interleave(self.columns, dim=1)[:, : shape[1]]  # [out, in]

    def check(self, mask: Tensor) -> None:
        broken = mask != self.spread(self.pool_mask(mask), mask.shape)  # [out, in]
        where = broken.nonzero()  # [broken weights, 2]
        if where.shape[0]:
            row, column = where[0].tolist()
            raise PruningError(
                f"{self.name} keeps or prunes a tile as one; {where.shape[0]} weights are pruned in tiles that are "
                f"kept; the first is row {row}, input {column}."
            )

    def _ragged(self, shape: torch.Size) -> bool:
        return bool(shape[0] % self.rows or shape[1] % self.columns)

    def _sum(self, tensor: Tensor) -> Tensor:
        if self._ragged(tensor.shape):
            right, below = -tensor.shape[1] % self.columns, -tensor.shape[0] % self.rows
            tensor = torch.nn.functional.pad(tensor, (0, right, 0, below))  # [tile rows · rows, tile columns · columns]
        tiles = tensor.reshape(tensor.shape[0] // self.rows, self.rows, -1, self.columns)
        return tiles.sum(dim=(1, 3))  # [tile rows, tile columns]


def parse_pattern(text: str) -> Pattern:
    """The pattern of a name, as `prunegpt.spec.patterns` reads it.

    Raises:
        PruningError: the text is no pattern.
    """
    try:
        written = read_pattern(text)
    except ValueError as error:
        raise PruningError(str(error)) from error
    if written.kind == "unstructured":
        return Unstructured()
    return (NOfM if written.kind == "N:M" else Block)(written.first, written.second)
