"""Which weights go, how many, when, and how they stay gone.

`criteria/` scores weights, `patterns` turns scores into masks of an exact count (`threshold` does the selecting),
`refining/` exchanges weights of a mask, `allocation/` spreads a budget over tensors, `solvers/` prune and repair a
layer, `oneshot` prunes a model with calibration data, `gradual` one in training (when: `prunegpt.spec.schedules`),
`enforce` keeps pruned weights at zero, and `masks` is the ledger: masks on disk, sparsity counted from the weights, and
the checks.

Every tensor here is canonical, [out, in]; a mask is a bool tensor, True = kept.
"""
