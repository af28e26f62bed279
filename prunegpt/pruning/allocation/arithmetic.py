"""Arithmetic: sparsity grows by the same step from each decoder layer to the next."""

from collections.abc import Mapping

from prunegpt.pruning.allocation.balance import allotted, block_weights


def arithmetic(
    sizes: Mapping[str, int], sparsity: float, *, blocks: Mapping[str, int | None], step: float = 0.005
) -> dict[str, float]:
    """Sparsities in arithmetic progression over the decoder layers (Huang et al. 2025, "Determining Layer-wise Sparsity
    for Large Language Models Through a Theoretical Perspective", ATP, arXiv 2502.14770).

    The errors of early layers pass through all later ones, so early layers are pruned less. The one number β = `step`
    is found in a few trials. Sparsities are clamped to [0, 1], and the mean over all weights is `sparsity`.

    Args:
        sizes: parameter name -> number of weights.
        sparsity: of all weights together.
        blocks: parameter name -> layer index. Tensors of no block (None) take `sparsity`.
        step: β, from one decoder layer to the next; negative: late layers are pruned less.
    """
    asked = {block: step * place for place, block in enumerate(sorted(block_weights(sizes, blocks)))}
    return allotted(sizes, sparsity, asked, blocks=blocks)
