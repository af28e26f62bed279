"""A model as files that others run: one file per format, each with a check that loads what was written."""
