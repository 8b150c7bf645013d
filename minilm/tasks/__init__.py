"""Labelled tasks, a file each: features, outputs, loss, scores."""
