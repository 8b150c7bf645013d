"""What a language model is used for: masks filled, texts continued, vectors and search."""
