"""Raw text -> batches."""
