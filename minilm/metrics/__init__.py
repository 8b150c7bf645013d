"""Metrics, their confidence intervals, and comparisons of systems, of slices and of groups of examples."""
