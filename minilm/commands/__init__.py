"""The commands of evaluate.py: the flags of each, and what it prints and writes."""
