"""How a model learns: losses, optimizers, the loop, and a job that survives what interrupts it; what it costs."""
