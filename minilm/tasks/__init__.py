"""Learning from labelled examples: one file a task, and what trains them all."""
