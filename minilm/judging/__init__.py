"""Judging predictions on labelled examples, and generated texts beside references."""
