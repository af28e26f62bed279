"""SparseML recipes and our own: read, explained, converted. Imports no torch.

source (YAML with lines, bounded) -> reader (stages of modifiers, of either dialect) -> meaning (what they ask for, in
the words of a spec; notes and known defects) -> convert (our own format, stages of a spec) and describe (for reading,
with what the converted section would do). `load` opens any of the dialects, and reads our own format.
"""
