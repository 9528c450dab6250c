"""Metrics: how good answers are, in plain Python on texts."""
