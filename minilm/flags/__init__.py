"""The flags of `train.py` and `finetune.py`, a file each; those of `evaluate.py` stand with its commands."""
