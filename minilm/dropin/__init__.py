"""transformers' classes under transformers' names: change `from transformers import` and stay."""
