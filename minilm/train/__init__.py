"""Loss, optimizer, loop: how a model learns."""
