"""What `train.py` needs beside data, model and loop: its flags, the unigram line, and the report at the end."""
