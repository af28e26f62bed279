"""Allocations: how one budget of zeros is spread over tensors.

Each is a pure function `allocate(sizes, sparsity, **needed) -> {name: sparsity}`, one a file, found by name through
`prunegpt.registry.ALLOCATIONS`. `sizes` gives the number of weights of each tensor, `sparsity` the share of all of
them to prune. What else one needs is a keyword of its own: `sparsities` (explicit), `blocks` (arithmetic),
`outlier_ratios` and `blocks` (owl), `median_scores` and `blocks` (dlp), `curves` (sensitivity).
`row` and `global` allot the same to every tensor; how they differ from `uniform` is in the selection, where
:func:`prunegpt.pruning.selection.select_masks` compares scores within a row, or over all tensors at once.
"""
