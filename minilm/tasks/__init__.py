"""Labelled tasks, a file each: features, outputs, loss, scores; their baselines, predictions in files, and names."""
