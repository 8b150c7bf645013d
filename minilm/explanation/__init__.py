"""Which words an output comes from, and where a model looks."""
