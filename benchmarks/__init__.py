"""Side by side: what is claimed, against what others reach on the same machine."""
