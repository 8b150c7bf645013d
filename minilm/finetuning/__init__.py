"""Fine-tuning: flags, settings, batches, the run, and what it leaves behind."""
