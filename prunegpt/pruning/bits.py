"""Masking in place, at the speed of memory.

A mask as int8, -1 = kept and 0 = pruned, is sign-extended by torch to the width of the weights' own bits, so that one
`bitwise_and_` on them zeroes what is pruned and leaves the rest bit for bit. NaN and infinity under the mask become 0,
which a product would not do. On a CPU this takes as long as a product with a mask of the weights' type, at a quarter of
its memory, and an eighth of `masked_fill_` with a bool mask (tests/bench/test_enforce.py measures it).
"""

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def mask_bits(mask: Tensor) -> Tensor:
    """A bool mask of any shape, True = kept, as int8 of the same shape and strides: -1 = kept, 0 = pruned."""
    return mask.view(torch.int8).neg()


def apply_bits(tensor: Tensor, bits: Tensor) -> None:
    """Zeroes, in place, what the bits of a mask of the same shape prune; fastest where the strides are the same too."""
    tensor.detach().view(_INTEGERS[tensor.element_size()]).bitwise_and_(bits)
