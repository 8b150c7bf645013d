"""Explanations of a model's output: a value for each word, by gradients, occlusion or attention."""
