"""Divergences between a teacher's and a student's next-token distributions, one file each, found by `registry`."""
