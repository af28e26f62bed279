"""Which weights of a matrix are kept: the one form in which masks are held, applied and written.

Criteria and patterns choose masks as bool [out, in], True = kept. What is chosen becomes a :class:`Mask`, which owns
the memory layout of the bits; nothing else packs, transposes or moves them.
"""

from collections.abc import Iterable, Sequence

import numpy
import torch
from torch import Tensor

from prunegpt.errors import PruningError

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


class Mask:
    """Which weights of one matrix are kept.

    Held as int8 [out, in], -1 = kept and 0 = pruned, with the strides of the weights: a matrix that its module stores
    [in, out] has a mask with the same memory layout. torch sign-extends the bits to the width of the weights' own,
    so that one `bitwise_and_` zeroes what is pruned and leaves the rest bit for bit. NaN and infinity under the mask
    become 0, which a product would not do. On a CPU this takes as long as a product with a mask of the weights' type,
    at a quarter of its memory, and an eighth of `masked_fill_` with a bool mask (tests/bench/test_enforce.py measures
    it).

    Args:
        kept: bool [out, in], True = kept.
        like: the weights, [out, in], whose strides and device the mask takes; None = those of `kept`.

    Raises:
        PruningError: mask and weights differ in shape.
    """

    __slots__ = ("_bits", "_pruned")
    _pruned: int | None  # counted once

    def __init__(self, kept: Tensor, like: Tensor | None = None) -> None:
        bits = kept_bits(kept)
        if like is not None:
            if kept.shape != like.shape:
                raise PruningError(
                    f"a mask must have the shape of its weight; the weight is {list(like.shape)} and the mask "
                    f"{list(kept.shape)} ([out, in]). Transpose it, or use the masks of this model."
                )
            bits = torch.empty_like(like, dtype=torch.int8).copy_(bits)
        self._bits = bits  # [out, in]
        self._pruned = None

    @classmethod
    def count(cls, masks: Iterable["Mask"], also: Sequence[Tensor] = ()) -> list[int]:
        """Counts what several masks prune, and reads further numbers, with one wait for a device.

        Args:
            masks: each is counted once in its life.
            also: integers or truth values, [] each.

        Returns:
            What `also` is.
        """
        unknown = [mask for mask in masks if mask._pruned is None]
        found = [*(torch.count_nonzero(mask._bits) for mask in unknown), *also]
        if not found:
            return []
        place = found[0].device
        numbers = torch.stack([one.to(device=place, dtype=torch.int64) for one in found]).tolist()
        for mask, kept in zip(unknown, numbers, strict=False):
            mask._pruned = mask.weights - int(kept)
        return [int(number) for number in numbers[len(unknown) :]]

    def like(self, matrix: Tensor) -> "Mask":
        """The mask with the strides and on the device of the weights [out, in]: itself, where it has them.

        Raises:
            PruningError: mask and weights differ in shape.
        """
        here = (self._bits.shape, self._bits.stride(), self._bits.device)
        if here == (matrix.shape, matrix.stride(), matrix.device):
            return self
        same = Mask(self.kept, like=matrix)
        same._pruned = self._pruned
        return same

    @classmethod
    def unpacked(cls, packed: Tensor, columns: int) -> "Mask":
        """The mask [out, columns] of bits that :attr:`packed` gave, uint8 [out, ceil(columns / 8)]."""
        bits = numpy.unpackbits(packed.cpu().numpy(), axis=1, count=columns, bitorder="little")  # [out, columns]
        return cls(torch.from_numpy(bits.view(numpy.bool_)))

    @property
    def packed(self) -> Tensor:
        """One bit per weight: uint8 [out, ceil(in / 8)] on the CPU, the first input in the lowest bit."""
        kept = self.kept.cpu().contiguous().numpy()
        return torch.from_numpy(numpy.packbits(kept, axis=1, bitorder="little"))

    @property
    def kept(self) -> Tensor:
        """bool [out, in], True = kept."""
        return self._bits.bool()

    @property
    def shape(self) -> torch.Size:
        return self._bits.shape

    @property
    def weights(self) -> int:
        """How many weights it is of."""
        return self._bits.numel()

    @property
    def pruned(self) -> int:
        """How many of them it prunes."""
        if self._pruned is None:
            self._pruned = self.weights - int(torch.count_nonzero(self._bits))
        return self._pruned

    def __and__(self, other: "Mask") -> "Mask":
        """What both keep."""
        both = object.__new__(Mask)
        both._bits = self._bits & other._bits.to(self._bits.device)
        both._pruned = None
        return both

    def same(self, other: "Mask") -> bool:
        """Whether both keep the same weights."""
        return torch.equal(self._bits, other._bits.to(self._bits.device))

    def apply(self, tensor: Tensor) -> None:
        """Zeroes, in place, what the mask prunes of weights, gradients or moments, [out, in] of any type."""
        if self._bits.device != tensor.device:  # the model was moved since
            self._bits = self._bits.to(tensor.device)
        tensor.detach().view(_INTEGERS[tensor.element_size()]).bitwise_and_(self._bits)

    def under(self, matrix: Tensor) -> Tensor:
        """A copy of a matrix [out, in] with zeros where the mask keeps."""
        under = matrix.detach().clone()  # [out, in], with the strides of the matrix
        under.view(_INTEGERS[under.element_size()]).bitwise_and_(~self._bits.to(under.device))
        return under

    def alive(self, matrix: Tensor) -> int:
        """How many weights of a matrix [out, in] are not zero although they are pruned."""
        return int(torch.count_nonzero(self.under(matrix)))


Masks = dict[str, Mask]  # by parameter name


def kept_bits(kept: Tensor) -> Tensor:
    """A bool mask of any shape, True = kept, as int8 of the same shape and strides: -1 = kept, 0 = pruned."""
    return kept.view(torch.int8).neg()
