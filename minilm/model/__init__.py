"""Batches -> states, logits, text."""
