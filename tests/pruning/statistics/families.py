"""The families of models whose statistics are compared."""

FAMILIES = ["gpt2", "llama", "opt", "gemma3", "neox", "bloom"]
