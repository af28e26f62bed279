"""SparseML recipes and our own: read, explained, simulated, converted. Imports no torch.

source (YAML with lines, bounded) -> legacy | session (lists of modifiers) -> meaning (what they ask for, in our words;
notes and known defects) -> convert (our own format) and simulate (when masks change, how sparsity and learning rate go)
-> describe (for reading). `own` reads our format, `load` any of the three.
"""
