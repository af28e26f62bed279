"""DLP: layers whose weights count for more in the median are pruned more."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunegpt.pruning.allocation.balance import allotted, block_weights, scaled


def median_score(scores: Sequence[Tensor]) -> float:
    """The median of a decoder layer's scores, of an even number the lower one of the middle two.

    Args:
        scores: |W| · ||X|| of each matrix of the layer, [out, in] each (:func:`prunegpt.pruning.criteria.wanda.wanda`);
            the median is over all of them together.
    """
    return float(torch.cat([tensor.flatten() for tensor in scores]).median())


def dlp(
    sizes: Mapping[str, int],
    sparsity: float,
    *,
    median_scores: Mapping[int, float],
    blocks: Mapping[str, int | None],
    limit: float = 0.15,
) -> dict[str, float]:
    """Sparsity growing linearly with the median score of the decoder layer (Chen et al. 2025, "DLP: Dynamic layerwise
    pruning in large language models", arXiv 2505.23807).

    The density of a layer is 1 - its share of the sum of all medians, scaled to a range of 2·limit and shifted so that
    the mean over all weights is right. Sparsities are clamped to [0, 1].

    Args:
        sizes: parameter name -> number of weights.
        sparsity: of all weights together.
        median_scores: layer index -> :func:`median_score` of the dense model.
        blocks: parameter name -> layer index. Tensors of no block (None) take `sparsity`.
        limit: α of the paper, half of the range of sparsities; the registry declares its range.
    """
    asked = scaled({block: median_scores[block] for block in block_weights(sizes, blocks)}, 2.0 * limit)
    return allotted(sizes, sparsity, asked, blocks=blocks)
