"""Stages: each takes a model and gives a model; equal keys are computed once."""
