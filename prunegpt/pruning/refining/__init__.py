"""Refinements exchange weights of a mask for others, so that a layer loses less with as many zeros."""
