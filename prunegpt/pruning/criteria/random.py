"""Random: the baseline that any criterion has to beat."""

import torch
from torch import Generator, Tensor

from prunegpt.pruning.criteria.base import builtin


def random(weight: Tensor, *, generator: Generator) -> Tensor:
    """S ~ U[0, 1), drawn on the generator's device so that a seed means the same masks wherever the weight is.

    Args:
        weight: [out, in]; only its shape and device count.
        generator: seeded by the caller; it advances.

    Returns:
        Scores, float32 [out, in].
    """
    return torch.rand(weight.shape, generator=generator, device=generator.device).to(weight.device)


RANDOM = builtin("random", random)
