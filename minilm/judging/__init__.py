"""What a system says of labelled examples, and what it is worth."""
