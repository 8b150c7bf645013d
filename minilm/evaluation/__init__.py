"""Uses of a pretrained model (embedding, search, filling masks, continuing texts), and the report on its training."""
