"""Fine-tuning on labelled examples: a file for each task, and the training that they share."""
