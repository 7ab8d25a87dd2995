"""Evaluation sets, the protocol they are measured under, and their metrics with standard errors."""
