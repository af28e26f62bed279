"""OWL: blocks whose inputs have more outliers keep more weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunegpt.errors import PruningError
from prunegpt.lm.device import sums_in
from prunegpt.pruning.allocation.balance import allotted, block_weights, scaled


def outlier_ratio(scores: Sequence[Tensor], *, multiple: float = 5.0) -> float:
    """D, the share of a block's scores above `multiple` times their mean (Yin et al. 2023, "Outlier Weighed Layerwise
    Sparsity (OWL)", eq. 1).

    Args:
        scores: |W| · ||X|| of each matrix of the block, [out, in] each (:func:`prunegpt.pruning.criteria.wanda.wanda`);
            the mean is over all of them together.
        multiple: M of the paper, which uses 5 to 10.
    """
    count = sum(tensor.numel() for tensor in scores)
    if not count:
        return 0.0
    mean = sum(float(tensor.sum(dtype=sums_in(tensor.device))) for tensor in scores) / count
    return sum(int(torch.count_nonzero(tensor > multiple * mean)) for tensor in scores) / count


def owl(
    sizes: Mapping[str, int],
    sparsity: float,
    *,
    outlier_ratios: Mapping[int, float],
    blocks: Mapping[str, int | None],
    limit: float = 0.08,
) -> dict[str, float]:
    """Sparsity falling linearly with the outlier ratio of the decoder layer (Yin et al. 2023, section 3.2).

    Ratios are scaled to a range of 2·limit and shifted so that the mean over all weights is the sparsity. The
    reference implementation may leave [sparsity - limit, sparsity + limit] by that shift; here sparsities are clamped
    to it, and to [0, 1], and the shift is the one that makes the mean right after clamping.

    Args:
        sizes: parameter name -> number of weights.
        sparsity: of all weights together.
        outlier_ratios: layer index -> :func:`outlier_ratio` of the dense model.
        blocks: parameter name -> layer index. Tensors of no block (None) take `sparsity`.
        limit: λ of the paper, how far a layer may be from the mean; the registry declares its range.

    Raises:
        PruningError: a block has no ratio, or a number is out of its range.
    """
    weights = block_weights(sizes, blocks)
    if missing := sorted(set(weights) - set(outlier_ratios)):
        raise PruningError(
            f"owl needs an outlier ratio of every block; those of blocks {missing} are missing. Measure them with "
            "calibration data on the dense model."
        )
    asked = scaled({block: outlier_ratios[block] for block in weights}, -2.0 * limit)
    return allotted(sizes, sparsity, asked, blocks=blocks, limit=limit)
