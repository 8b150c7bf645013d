"""transformers' classes under transformers' names: only the import of a program changes."""
