"""Fine-tuning: its settings and batches, the run, and what it leaves behind."""
