"""Solvers prune a layer and repair it: they choose a mask, and change the weights that stay to undo what pruning broke.

`sparsegpt`, `admm` and `obert` are the solvers; `base` is what they share, `factor` the damped inverse of a Gram
matrix, and `support` the least squares on a fixed mask.
"""
