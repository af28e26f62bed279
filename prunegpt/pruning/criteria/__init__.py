"""Criteria: how important a weight is. One file each, found by name through `prunegpt.registry.CRITERIA`."""
